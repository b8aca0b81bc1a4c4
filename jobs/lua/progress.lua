-- Record that a step is done, each step once.
-- ARGV: job id, token, step, total
-- Answers: 1, or 0 when the claim is lost

local id, step, total = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
if not holds(load(id), ARGV[2]) then return 0 end
if step > tonumber(redis.call('HGET', KEY.job .. id, 'step') or 0) then
  redis.call('HSET', KEY.job .. id, 'step', step, 'total_steps', total)
  publish(id, 'progress', cjson.encode({step = step, total = total}))
end
return 1
