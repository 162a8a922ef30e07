-- Saves the record of a session that lives, and renews it and its views.
-- KEYS: the record; the views. ARGV: what the record is to hold; ms that a renewed record lives; ms by which views end
-- before their record.
local call = redis.call
-- A record with less than this may have had views, and they have ended.
if call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) then
  return
end
-- First what a full Redis refuses.
call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
call('PEXPIRE', KEYS[2], ARGV[2] - ARGV[3])
