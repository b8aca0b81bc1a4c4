-- How many queued jobs are more urgent than one.
-- ARGV: job id, priority
-- Answers: that number; 0 when the job is not queued

local rank_of = {high = 1, normal = 2, low = 3}
local score = redis.call('ZSCORE', KEY.waiting[ARGV[2]], ARGV[1])
if not score then return 0 end
local ahead = redis.call('ZRANK', KEY.waiting[ARGV[2]], ARGV[1])
for rank, priority in ipairs(PRIORITIES) do
  if priority ~= ARGV[2] then
    local limit = tonumber(score) + (rank_of[ARGV[2]] - rank) * AGEING
    local open = rank < rank_of[ARGV[2]] and '' or '('
    ahead = ahead + redis.call('ZCOUNT', KEY.waiting[priority], '-inf', open .. stamp(limit))
  end
end
return ahead
