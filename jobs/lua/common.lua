-- What every script of the queue shares; the names of keys and the limits are set in front of it by jobs/link.py.
-- A script decides and writes in one step: Redis runs nothing beside it, and its effects reach the log together.
-- Every script gives the same answer when the client library sends it again because the first reply was lost.

local PRIORITIES = {'high', 'normal', 'low'}

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

local function publish(id, kind, data)
  redis.call('XADD', KEY.events .. id, 'MAXLEN', '~', 256, '*', 't', kind, 'd', data)
  redis.call('XADD', KEY.changed, 'MAXLEN', '~', 4096, '*', 'job', id)
end

local function ring(lane, field, value)
  redis.call('XADD', KEY.bell[lane], 'MAXLEN', '~', 1024, '*', field, value)
end

-- The facts that decisions need; nil when there is no such job.
local function load(id)
  local f = redis.call('HMGET', KEY.job .. id, 'state', 'token', 'last_token', 'entry', 'priority', 'owner',
    'created_at', 'deliveries', 'suspect_attempts', 'cancel_requested', 'worker', 'previews', 'deleted', 'lane',
    'kind')
  if not f[1] then return nil end
  return {id = id, state = f[1], token = f[2], last_token = f[3], entry = f[4], priority = f[5], owner = f[6],
    created_at = f[7], deliveries = tonumber(f[8] or 0), suspect_attempts = tonumber(f[9] or 0),
    cancel_requested = f[10], worker = f[11] or '', previews = f[12], deleted = f[13],
    lane = f[14] or 'image', kind = f[15] or 'image'}
end

-- The sets that list an owner's jobs: all of them, and those of this one's kind.
local function listings(job)
  return {KEY.owned .. job.owner, KEY.kind .. job.kind .. ':' .. job.owner}
end

local function holds(job, token)
  return job ~= nil and job.state == 'running' and job.token == token
end

local function start_waiting(job)
  redis.call('ZADD', KEY.waiting[job.lane][job.priority], job.created_at, job.id)
  redis.call('HINCRBY', KEY.queued, job.owner, 1)
end

local function stop_waiting(job)
  redis.call('ZREM', KEY.waiting[job.lane][job.priority], job.id)
  if redis.call('HINCRBY', KEY.queued, job.owner, -1) <= 0 then redis.call('HDEL', KEY.queued, job.owner) end
end

local function drop_entry(queue, entry)
  redis.call('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
end

-- How far apart jobs end, as a running mean; a pause counts as a minute at most.
local function keep_pace(lane, at)
  local pace = redis.call('HMGET', KEY.pace[lane], 'last', 'gap')
  local gap = tonumber(pace[2] or 5)
  if pace[1] then gap = 0.9 * gap + 0.1 * math.min(at - tonumber(pace[1]), 60) end
  redis.call('HSET', KEY.pace[lane], 'last', stamp(at), 'gap', stamp(gap))
end

-- Drop a final job's record; who follows it has a minute to read its end.
local function forget(job)
  redis.call('DEL', KEY.job .. job.id)
  for _, listing in ipairs(listings(job)) do redis.call('ZREM', listing, job.id) end
  redis.call('EXPIRE', KEY.events .. job.id, 60)
end

-- Bring a job to a final state. A queued job's entry stays in its stream until a take drops it: deleting what was never
-- delivered would blind the group's lag counter, which autoscalers read.
local function finish(job, state, field, payload)
  local at, key = now(), KEY.job .. job.id
  if job.state == 'queued' then
    stop_waiting(job)
  else
    drop_entry(KEY.queue[job.lane][job.priority], job.entry)
    keep_pace(job.lane, at)
  end
  redis.call('HSET', key, 'state', state, 'finished_at', stamp(at))
  if field then redis.call('HSET', key, field, payload) end
  if state == 'succeeded' then
    redis.call('HSET', key, 'expires_at', stamp(at + RESULT_TTL))
    redis.call('XADD', KEY.finished, 'MAXLEN', '~', 1024, '*', 'job', job.id)
  end
  publish(job.id, state, payload)
  redis.call('EXPIRE', key, RECORD_TTL)
  redis.call('EXPIRE', KEY.events .. job.id, job.previews and PREVIEW_LOG_TTL or RECORD_TTL)
  if job.deleted then forget(job) end
end

-- Give up on a job: it fails, and a letter says why and with what request.
local function bury(job, code, message)
  local failure, at = cjson.encode({code = code, message = message}), now()
  local oldest = string.format('%d', (at - DEAD_LETTER_TTL) * 1000)
  redis.call('XTRIM', KEY.dead[job.lane], 'MINID', '~', oldest)
  redis.call('XADD', KEY.dead[job.lane], 'MAXLEN', '~', 10000, '*', 'job_id', job.id, 'at', stamp(at), 'failure', failure,
    'deliveries', job.deliveries, 'suspect_attempts', job.suspect_attempts, 'worker', job.worker,
    'request', redis.call('HGET', KEY.job .. job.id, 'request'))
  finish(job, 'failed', 'failure', failure)
end

-- End a lease: the job goes back to its place in the queue, unless it was canceled or had its chances.
local function return_to_queue(job, suspect, reason, by)
  local key = KEY.job .. job.id
  if suspect then
    job.suspect_attempts = job.suspect_attempts + 1
    redis.call('HSET', key, 'suspect_attempts', job.suspect_attempts)
  end
  redis.call('HSET', key, 'last_token', job.token)
  redis.call('HDEL', key, 'token')
  if job.cancel_requested then return finish(job, 'canceled', nil, '{}') end
  if suspect and job.suspect_attempts >= MAX_SUSPECT_ATTEMPTS then
    return bury(job, reason, string.format('the worker died %d times while it ran this job, last by: %s',
      job.suspect_attempts, reason))
  end
  if job.deliveries >= MAX_DELIVERIES then
    return bury(job, 'too_many_deliveries', string.format('the job was handed to workers %d times and finished by none, '
      .. 'last given back for: %s; submit it again', job.deliveries, reason))
  end
  redis.call('HSET', key, 'state', 'queued', 'step', 0)
  redis.call('HDEL', key, 'worker', 'started_at')
  redis.call('XCLAIM', KEY.queue[job.lane][job.priority], GROUP, RETURNED, 0, job.entry, 'JUSTID')
  start_waiting(job)
  publish(job.id, 'requeued', cjson.encode({reason = reason, suspect = suspect, deliveries = job.deliveries, by = by}))
  ring(job.lane, 'job', job.id)
end

