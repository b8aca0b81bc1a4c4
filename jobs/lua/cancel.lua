-- Cancel a queued job, or ask the worker of a running one to stop.
-- ARGV: job id, 'any' or 'owner', the owner asked for
-- Answers: {'missing'} {'finished', record} {'ok', record}

local job = load(ARGV[1])
if not job or job.deleted or (ARGV[2] == 'owner' and job.owner ~= ARGV[3]) then return {'missing'} end
local verdict = 'ok'
if job.state == 'queued' then
  finish(job, 'canceled', nil, '{}')
elseif job.state == 'running' then
  redis.call('HSET', KEY.job .. job.id, 'cancel_requested', 1)
  ring(job.lane, 'cancel', job.id)
elseif job.state ~= 'canceled' then
  verdict = 'finished'
end
return {verdict, redis.call('HGETALL', KEY.job .. job.id)}
