-- How many queued jobs of some lanes are more urgent than one.
-- ARGV: job id, its lane, its priority, every lane that counts
-- Answers: that number; 0 when the job is not queued

local rank_of = {high = 1, normal = 2, low = 3}
local id, own_lane, own = ARGV[1], ARGV[2], ARGV[3]
local score = redis.call('ZSCORE', KEY.waiting[own_lane][own], id)
if not score then return 0 end
local ahead = redis.call('ZRANK', KEY.waiting[own_lane][own], id)
for i = 4, #ARGV do
  for rank, priority in ipairs(PRIORITIES) do
    if ARGV[i] ~= own_lane or priority ~= own then
      local limit = tonumber(score) + (rank_of[own] - rank) * AGEING
      local open = rank < rank_of[own] and '' or '('
      ahead = ahead + redis.call('ZCOUNT', KEY.waiting[ARGV[i]][priority], '-inf', open .. stamp(limit))
    end
  end
end
return ahead
