-- Bring a running job to its final state, if the claim still holds.
-- ARGV: job id, token, state, payload as JSON (a result, a failure, or '{}')
-- Answers: 1, or 0 when the claim is lost

local token, state, payload = ARGV[2], ARGV[3], ARGV[4]
local job = load(ARGV[1])
if job and job.token == token and job.state == state then return 1 end -- sent again
if not holds(job, token) then return 0 end
if job.deleted and state == 'succeeded' then -- nobody wants it any more: the worker drops its files
  finish(job, 'canceled', nil, '{}')
  return 0
end
local fields = {succeeded = 'result', failed = 'failure'}
finish(job, state, fields[state], payload)
return 1
