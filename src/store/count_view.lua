-- Counts one view and renews the session, or finds it over: then 0, and nothing is counted.
-- KEYS: the session's record, its views (path -> count). ARGV: the path, seconds to live.
if redis.call('EXPIRE', KEYS[1], ARGV[2]) == 0 then
  return 0
end
local count = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
if count == 1 and redis.call('HLEN', KEYS[2]) == 1 then
  -- The session's second view: the first one's path is in the record, which is MessagePack of
  -- [id, data, expiry]. The data begins at byte 20; the id is of a type that cmsgpack cannot read.
  local data = cmsgpack.unpack(string.sub(redis.call('GET', KEYS[1]), 20))
  local first = data.first_view
  if first then
    local views = redis.call('HINCRBY', KEYS[2], first, 1)
    if first == ARGV[1] then
      count = views
    end
  end
end
-- The record alone ends the session: it may be saved, and renewed by another clock, after the view.
redis.call('EXPIRE', KEYS[2], ARGV[2] + 60)
return count
