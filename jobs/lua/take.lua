-- Begin up to `room` jobs for a worker, the most urgent first.
-- ARGV: worker, token, room, the lanes it takes from
-- Answers: {1 when there may be more to drop else 0, {id, record}, ...}

local worker, token, room = ARGV[1], ARGV[2], tonumber(ARGV[3])
local MOST_DROPS = 1000
local drops, taken, empty = 0, {}, {}

-- The reply that handed these out was lost: hand out again what is still this worker's.
for _, id in ipairs(redis.call('LRANGE', KEY.taken .. token, 0, -1)) do
  if holds(load(id), token) then table.insert(taken, {id, redis.call('HGETALL', KEY.job .. id)}) end
end
if #taken > 0 then return {0, unpack(taken)} end

-- A lower priority may be overtaken by younger jobs of a higher one for AGEING seconds per step. Lanes are equals.
local function most_urgent()
  local best, best_due
  for i = 4, #ARGV do
    for rank, priority in ipairs(PRIORITIES) do
      local waiting, queue = KEY.waiting[ARGV[i]][priority], KEY.queue[ARGV[i]][priority]
      local oldest = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
      if oldest[2] and not empty[queue] then
        local due = tonumber(oldest[2]) + rank * AGEING
        if not best or due < best_due then best, best_due = queue, due end
      end
    end
  end
  return best
end

-- The next entry of a stream, given back ones first: they are the oldest.
local function next_entry(queue)
  local back = redis.call('XPENDING', queue, GROUP, '-', '+', 1, RETURNED)
  if back[1] then return redis.call('XCLAIM', queue, GROUP, worker, 0, back[1][1])[1] end
  local new = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', queue, '>')
  return new and new[1][2][1]
end

local function begin(job)
  local key, at = KEY.job .. job.id, now()
  local delivery = redis.call('HINCRBY', key, 'deliveries', 1)
  redis.call('HSET', key, 'state', 'running', 'token', token, 'worker', worker, 'started_at', stamp(at), 'step', 0)
  redis.call('HDEL', key, 'shown')
  -- this token's first reply was lost for longer than a lease: what was returned then is held again now
  if job.last_token == token then redis.call('HDEL', key, 'last_token') end
  stop_waiting(job)
  publish(job.id, 'started', cjson.encode({worker = worker, delivery = delivery}))
  redis.call('RPUSH', KEY.taken .. token, job.id)
  table.insert(taken, {job.id, redis.call('HGETALL', key)})
end

while #taken < room and drops < MOST_DROPS do
  local queue = most_urgent()
  if not queue then break end
  local entry = next_entry(queue)
  if not entry then
    empty[queue] = true
  else
    local job = load(entry[2][2])
    if job and job.state == 'queued' and job.entry == entry[1] then
      begin(job)
    else -- canceled or expired while it waited
      drop_entry(queue, entry[1])
      drops = drops + 1
    end
  end
end
if #taken > 0 then redis.call('PEXPIRE', KEY.taken .. token, math.ceil(LEASE * 1000)) end
return {drops == MOST_DROPS and 1 or 0, unpack(taken)}
