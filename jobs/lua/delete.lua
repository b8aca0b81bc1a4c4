-- Forget a job: a queued or final one at once, a running one when its worker has stopped.
-- ARGV: job id, 'owner' or 'any', owner
-- Answers: {'deleted', record} {'missing'}

local id, who, owner = ARGV[1], ARGV[2], ARGV[3]
local job = load(id)
if not job or job.deleted or (who == 'owner' and job.owner ~= owner) then return {'missing'} end
local key = KEY.job .. id
local record = redis.call('HGETALL', key)
redis.call('HSET', key, 'deleted', '1')
job.deleted = '1'
if job.state == 'queued' then
  finish(job, 'canceled', nil, '{}')
elseif job.state == 'running' then
  redis.call('HSET', key, 'cancel_requested', '1')
  ring(job.lane, 'cancel', id)
else
  forget(job)
end
return {'deleted', record}
