-- The queue at one moment.
-- Answers: {running, dead, depth, oldest age, depth, oldest age, ...} by lane, then by priority; ages as text

local running, dead, at, reply = 0, 0, now(), {}
for _, lane in ipairs(LANES) do
  dead = dead + redis.call('XLEN', KEY.dead[lane])
  for _, priority in ipairs(PRIORITIES) do
    local queue, waiting = KEY.queue[lane][priority], KEY.waiting[lane][priority]
    local oldest = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
    table.insert(reply, redis.call('ZCARD', waiting))
    table.insert(reply, oldest[2] and stamp(math.max(0, at - tonumber(oldest[2]))) or '0')
    if redis.call('EXISTS', queue) == 1 then
      local pending = redis.call('XPENDING', queue, GROUP)
      for _, consumer in ipairs(pending[4] or {}) do
        if consumer[1] ~= RETURNED then running = running + tonumber(consumer[2]) end
      end
    end
  end
end
return {running, dead, unpack(reply)}
