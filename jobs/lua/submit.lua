-- Accept a job, or find the one that the same id or idempotency key got before.
-- ARGV: job id, owner, fingerprint, idempotency key's name or '', lane, priority, request as JSON,
--   kind, expected device seconds or '', seconds until there may be room or ''
-- Answers: {'created', time} {'exists', id, record} {'conflict', 'id'|'key'} {'full', why, retry after}

local id, owner, fingerprint, idem, lane, priority, request = unpack(ARGV)
local kind, estimate, room_in = ARGV[8], ARGV[9], tonumber(ARGV[10])

local function first(known, mark, what)
  if mark ~= fingerprint then return {'conflict', what} end
  return {'exists', known, redis.call('HGETALL', KEY.job .. known)}
end

if idem ~= '' then
  local known, mark = string.match(redis.call('GET', idem) or '', '^(%S+) (%S+)$')
  if known and redis.call('EXISTS', KEY.job .. known) == 1 and not load(known).deleted then
    return first(known, mark, 'key')
  end
end
local mark = redis.call('HGET', KEY.job .. id, 'fingerprint')
if mark then return first(id, mark, 'id') end

local function full(why)
  local gap = tonumber(redis.call('HGET', KEY.pace[lane], 'gap') or 5)
  return {'full', why, math.ceil(math.max(1, room_in or math.min(gap, 60)))}
end

local depth = 0
for _, each in ipairs(LANES) do
  for _, name in ipairs(PRIORITIES) do depth = depth + redis.call('ZCARD', KEY.waiting[each][name]) end
end
if depth >= MAX_QUEUE then return full(string.format('the queue is full: %d jobs wait', depth)) end
local own = tonumber(redis.call('HGET', KEY.queued, owner) or 0)
if owner ~= '' and own >= MAX_QUEUED_PER_OWNER then
  return full(string.format('%d jobs of this key wait, which is the limit', own))
end

local queue = KEY.queue[lane][priority]
if redis.call('EXISTS', queue) == 0 then redis.call('XGROUP', 'CREATE', queue, GROUP, '0', 'MKSTREAM') end
local at = now()
local job = {id = id, owner = owner, kind = kind, lane = lane, priority = priority, created_at = stamp(at)}
local entry = redis.call('XADD', queue, '*', 'job', id)
redis.call('HSET', KEY.job .. id, 'state', 'queued', 'owner', owner, 'fingerprint', fingerprint, 'priority', priority,
  'request', request, 'created_at', job.created_at, 'entry', entry, 'lane', lane, 'kind', kind,
  'estimate', estimate)
if idem ~= '' then redis.call('SET', idem, id .. ' ' .. fingerprint, 'EX', IDEMPOTENCY_TTL) end
start_waiting(job)
for _, listing in ipairs(listings(job)) do
  redis.call('ZREMRANGEBYSCORE', listing, '-inf', stamp(at - RECORD_TTL - QUEUE_WAIT - 86400))
  redis.call('ZADD', listing, job.created_at, id)
end
publish(id, 'queued', '{}')
ring(lane, 'job', id)
return {'created', job.created_at}
