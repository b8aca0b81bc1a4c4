-- Put a guard's record in the place of the one that it was made from, and tell of a change of its verdict.
-- ARGV: model/profile, the record as it was read ('' for none), the record as it shall be, an event as JSON or ''
-- Answers: 1, or 0 when somebody else was faster: read again, decide again. A record holds the ids of what it counts,
-- so whoever sends this twice finds its comparison counted when it reads again.

local field, old, new, event = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('HGET', KEY.guard, field) or ''
if found ~= old then return 0 end
redis.call('HSET', KEY.guard, field, new)
if event ~= '' then
  redis.call('XADD', KEY.guard_events, 'MAXLEN', '~', 1000, '*', 'd', event)
end
return 1
