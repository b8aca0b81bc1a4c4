-- Keep claims for another lease.
-- ARGV: job id, token, job id, token, ...
-- Answers: {ids of lost jobs}, {ids of jobs to stop}

local lost, canceled = {}, {}
for i = 1, #ARGV, 2 do
  local job = load(ARGV[i])
  if holds(job, ARGV[i + 1]) then
    redis.call('XCLAIM', KEY.queue[job.lane][job.priority], GROUP, job.worker, 0, job.entry, 'JUSTID')
    if job.cancel_requested then table.insert(canceled, job.id) end
  else
    table.insert(lost, ARGV[i])
  end
end
return {lost, canceled}
