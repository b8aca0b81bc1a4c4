-- Return jobs whose lease has ended, fail jobs that waited too long, forget workers that left nothing behind.
-- ARGV: the worker that looks, whatever its lanes
-- Answers: how many jobs were returned or failed

local by, count = ARGV[1], 0
local LEASE_MS, FORGET_MS = math.ceil(LEASE * 1000), 86400000

-- While the server was away nobody could renew: after its start, living workers get one lease to do so.
local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
local leases_count = uptime >= LEASE

local function return_entry(queue, entry)
  local found = redis.call('XRANGE', queue, entry, entry)[1]
  local job = found and load(found[2][2])
  if job and job.state == 'running' and job.entry == entry then
    return_to_queue(job, false, 'lease', by)
    return 1
  end
  drop_entry(queue, entry)
  return 0
end

local function as_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function reap(queue, waiting)
  local consumers = redis.call('EXISTS', queue) == 1 and redis.call('XINFO', 'CONSUMERS', queue, GROUP) or {}
  for _, flat in ipairs(consumers) do
    local consumer = as_table(flat)
    if consumer.name ~= RETURNED and consumer.pending > 0 and leases_count then
      for _, row in ipairs(redis.call('XPENDING', queue, GROUP, 'IDLE', LEASE_MS, '-', '+', 100, consumer.name)) do
        count = count + return_entry(queue, row[1])
      end
    elseif consumer.name ~= RETURNED and consumer.pending == 0 and consumer.idle > FORGET_MS then
      redis.call('XGROUP', 'DELCONSUMER', queue, GROUP, consumer.name)
    end
  end
  local late = redis.call('ZRANGEBYSCORE', waiting, '-inf', stamp(now() - QUEUE_WAIT), 'LIMIT', 0, 100)
  for _, id in ipairs(late) do
    local message = string.format('no worker took the job within %d s; submit it again', QUEUE_WAIT)
    finish(load(id), 'failed', 'failure', cjson.encode({code = 'expired', message = message}))
    count = count + 1
  end
end

for _, lane in ipairs(LANES) do
  for _, priority in ipairs(PRIORITIES) do reap(KEY.queue[lane][priority], KEY.waiting[lane][priority]) end
end
return count
