-- End a claim without a result.
-- ARGV: job id, token, 1 when the job is suspect else 0, reason
-- Answers: 1, or 0 when the claim is lost

local job, token = load(ARGV[1]), ARGV[2]
if job and job.last_token == token then return 1 end -- sent again
if not holds(job, token) then return 0 end
return_to_queue(job, ARGV[3] == '1', ARGV[4], job.worker)
return 1
