-- Saves the record of a session that lives, and renews it and its counts. Returns whether it lives, as 1 or 0.
-- KEYS: the record; the counts. ARGV: what the record is to hold; ms that a renewed record lives; ms by which counts end
-- before their record.

-- Within the margin, its counts may have expired already.
if redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) then
  return '0'
end
-- The first write: when out of memory, Redis refuses only a script's first write.
local saved = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if saved.err then
  -- Redis before 7 puts the position in the script first.
  return { err = string.match(saved.err, '^@user_script: %d+: %-?(.*)') or saved.err }
end
redis.call('PEXPIRE', KEYS[2], ARGV[2] - ARGV[3])
return '1'
