-- The queue at one moment.
-- Answers: {running, dead, depth, oldest age, depth, oldest age, ...} in the order of priorities; ages as text

local running, at, reply = 0, now(), {}
for _, priority in ipairs(PRIORITIES) do
  local oldest = redis.call('ZRANGE', KEY.waiting[priority], 0, 0, 'WITHSCORES')
  table.insert(reply, redis.call('ZCARD', KEY.waiting[priority]))
  table.insert(reply, oldest[2] and stamp(math.max(0, at - tonumber(oldest[2]))) or '0')
  if redis.call('EXISTS', KEY.queue[priority]) == 1 then
    local pending = redis.call('XPENDING', KEY.queue[priority], GROUP)
    for _, consumer in ipairs(pending[4] or {}) do
      if consumer[1] ~= RETURNED then running = running + tonumber(consumer[2]) end
    end
  end
end
return {running, redis.call('XLEN', KEY.dead), unpack(reply)}
