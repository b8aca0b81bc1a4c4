-- All work that is not done: what runs, and what waits.
-- Answers: {running, waiting}, each flat. Running: id, lane, expected seconds or '', steps done, steps in all, ...
-- Waiting: id, lane, expected seconds or '', when it is due, ...

local running, waiting = {}, {}
for _, lane in ipairs(LANES) do
  for rank, priority in ipairs(PRIORITIES) do
    local queue = KEY.queue[lane][priority]
    local entries = redis.call('EXISTS', queue) == 1 and redis.call('XPENDING', queue, GROUP, '-', '+', 1000) or {}
    for _, row in ipairs(entries) do
      local found = row[2] ~= RETURNED and redis.call('XRANGE', queue, row[1], row[1])[1]
      if found then
        local f = redis.call('HMGET', KEY.job .. found[2][2], 'estimate', 'step', 'total_steps', 'state')
        if f[4] == 'running' then
          for _, fact in ipairs({found[2][2], lane, f[1] or '', f[2] or '0', f[3] or '0'}) do
            table.insert(running, fact)
          end
        end
      end
    end
    local queued = redis.call('ZRANGE', KEY.waiting[lane][priority], 0, -1, 'WITHSCORES')
    for i = 1, #queued, 2 do
      local estimate = redis.call('HGET', KEY.job .. queued[i], 'estimate') or ''
      local due = stamp(tonumber(queued[i + 1]) + rank * AGEING)
      for _, fact in ipairs({queued[i], lane, estimate, due}) do table.insert(waiting, fact) end
    end
  end
end
return {running, waiting}
