-- Publish a preview picture, each index once per attempt.
-- ARGV: job id, token, index, mime, base64
-- Answers: 1, or 0 when the claim is lost

local id, index = ARGV[1], tonumber(ARGV[3])
if not holds(load(id), ARGV[2]) then return 0 end
if index > tonumber(redis.call('HGET', KEY.job .. id, 'shown') or -1) then
  redis.call('HSET', KEY.job .. id, 'shown', index, 'previews', 1)
  publish(id, 'preview', cjson.encode({index = index, mime = ARGV[4], b64 = ARGV[5]}))
end
return 1
