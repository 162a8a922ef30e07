-- Counts a batch of views and renews their sessions: each view once, however often the call arrives while a reply is
-- kept.
--
-- KEYS: the lane's last reply; then for each view its session's record and its session's counts (path -> count).
-- ARGV: the call's number; ms that a renewed record lives; ms by which counts end before their record; seconds that a
-- reply is kept; the name of the first view's path in a record; a digit for each view, 1 if its session is to be
-- renewed, else 0; then for each view its path.
--
-- Returns the reply, a line each: the call's number; then for each view its count, 0 if its session is over (nothing
-- is counted then), or '-' and the error that kept it from being counted.
local number, record_life, margin, kept_for, first_view, due = unpack(ARGV, 1, 6)
local size = #due
local lines = { number }
-- Per view: whether it was counted; and, if it began its session's counts, true or their time to live in ms.
local counted, begun = {}, {}
local has_news = false
local is_due = string.byte('1')

-- An error's text, in one line. Redis before 7 puts its position in the script first.
local function text(err)
  local line = string.gsub(err, '[\r\n]+', ' ')
  return string.match(line, '^@user_script: %d+: %-?(.*)') or line
end

-- redis.call, with errors as plain text.
local function call(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    error(text(answer.err), 0)
  end
  return answer
end

-- The path of the session's first view, which its record alone has; nil if the session did not begin with a view. The
-- record is MessagePack, [id, data, expiry]: the data begins at byte 20, after an id of a type that cmsgpack refuses.
local function first_path(record)
  local is_read, data = pcall(cmsgpack.unpack, string.sub(record, 20))
  if not is_read or type(data) ~= 'table' then
    error("ERR a session's record cannot be unpacked", 0)
  end
  return type(data[first_view]) == 'string' and data[first_view] or nil
end

-- For a path that was counted to 1: this is the session's second view, or its first one of another page, or the
-- session is over. Gives its count.
local function count_new_path(view, record, counts, path)
  local data = call('GET', record)
  if not data then
    return 0
  end
  local first = first_path(data)
  local count = 1
  if first == path then
    begun[view] = true
    count = call('HINCRBY', counts, path, 1)
  elseif first then
    begun[view] = call('HSETNX', counts, first, 1) == 1
  else
    begun[view] = call('HLEN', counts) == 1
  end
  if begun[view] then
    -- Within the margin, its counts may have expired already.
    begun[view] = call('PTTL', record) - margin
    if begun[view] <= 0 then
      return 0
    end
  end
  return count
end

-- Leaves the session's counts as if this view had never come.
local function undo(view, counts, path)
  if begun[view] then
    call('DEL', counts)
    begun[view] = nil
  elseif call('HINCRBY', counts, path, -1) == 0 then
    call('HDEL', counts, path)
  end
end

for view = 1, size do
  local counts, path = KEYS[2 * view + 1], ARGV[view + 6]
  -- The first write: when out of memory, Redis refuses only a script's first write.
  local count = redis.pcall('HINCRBY', counts, path, 1)
  if type(count) == 'table' then
    count = '-' .. text(count.err)
  elseif count == 1 then
    local is_done, result = pcall(count_new_path, view, KEYS[2 * view], counts, path)
    if not is_done then
      undo(view, counts, path)
      count = '-' .. result
    elseif result == 0 then
      begun[view] = nil
      call('DEL', KEYS[2 * view], counts)
      count = 0
    else
      count = result
    end
  end
  if type(count) == 'number' and count > 0 then
    counted[view] = true
    -- Lua's own form of large numbers is not exact.
    count = count < 1e14 and count or string.format('%.0f', count)
  end
  has_news = has_news or count ~= 0
  lines[view + 1] = count
end

local reply = table.concat(lines, '\n')
if not has_news then
  -- Sessions that are over stay over: such a call may run any number of times.
  return reply
end

-- One command stores this reply and returns the previous one. If that is this call's or a newer one's, this call is
-- repeated or too late, and is undone within the same atomic step.
local kept = redis.pcall('SET', KEYS[1], reply, 'EX', kept_for, 'GET')
local is_kept = type(kept) ~= 'table'
if not is_kept or kept and (tonumber(string.match(kept, '^%d+')) or 0) >= tonumber(number) then
  for view = size, 1, -1 do
    if counted[view] then
      undo(view, KEYS[2 * view + 1], ARGV[view + 6])
    end
  end
  if not is_kept then
    return { err = text(kept.err) }
  end
  call('SET', KEYS[1], kept, 'EX', kept_for)
  return kept
end

for view = 1, size do
  if counted[view] and string.byte(due, view) == is_due then
    call('PEXPIRE', KEYS[2 * view], record_life)
    call('PEXPIRE', KEYS[2 * view + 1], record_life - margin)
  elseif begun[view] then
    call('PEXPIRE', KEYS[2 * view + 1], begun[view])
  end
end
return reply
