-- Counts views and renews their sessions: once, however often and however late the call arrives.
-- KEYS: where the last call is kept; for each view, its session's record and its views, a hash
-- path -> count. ARGV: the number of the call, seconds to live; for each view, its path.
-- Returns what is kept, a line each: the number, then for each view its count, 0 if the session is
-- over (nothing is counted then), or the error that this view met.
local kept = redis.call('GET', KEYS[1])
if kept and tonumber(string.match(kept, '^%d+')) >= tonumber(ARGV[1]) then
  return kept
end

local call = redis.call
-- As a time, in text: EXPIRE would have Redis work that out for its replicas with each call, which is
-- a fifth of all that a view costs it.
local time = call('TIME')
local record_end = (time[1] + ARGV[2]) * 1000 + math.floor(time[2] / 1000)
-- The record alone ends the session: it may be saved, and renewed by another clock, after the view.
local views_end = string.format('%.0f', record_end + 60000)
record_end = string.format('%.0f', record_end)

local function count_view(record, views, path)
  -- First what a full Redis refuses: it refuses no write that follows another.
  local count = call('HINCRBY', views, path, 1)
  if call('PEXPIREAT', record, record_end) == 0 then
    call('DEL', views)
    return 0
  end
  call('PEXPIREAT', views, views_end)
  if count == 1 and call('HLEN', views) == 1 then
    -- The session's second view: the first one's path is in the record, which is MessagePack of
    -- [id, data, expiry]. The data begins at byte 20; the id is of a type that cmsgpack cannot read.
    local data = cmsgpack.unpack(string.sub(call('GET', record), 20))
    local first = data['1']
    if first then
      local first_count = call('HINCRBY', views, first, 1)
      if first == path then
        count = first_count
      end
    end
  end
  return count
end

local lines = { ARGV[1] }
for view = 1, #ARGV - 2 do
  local _, answer = pcall(count_view, KEYS[2 * view], KEYS[2 * view + 1], ARGV[view + 2])
  -- An error is a table since Redis 7, a string before.
  lines[view + 1] = type(answer) == 'table' and answer.err or answer
end
kept = table.concat(lines, '\n')
-- An hour: longer than TCP can deliver a call late.
call('SET', KEYS[1], kept, 'EX', 3600)
return kept
