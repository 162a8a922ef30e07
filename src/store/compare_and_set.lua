-- SET … IFEQ for servers that lack it, and for several sessions in one call: each key gets its new value if it holds the
-- expected one. A value never comes again, so each is stored once, however often the call arrives.
--
-- KEYS: sessions.
-- ARGV[1]: ms that a session lives.
-- ARGV[2]: how the value of an ended session begins, after its id.
-- ARGV[3]: ms that such a value lives.
-- ARGV[4]: for each key, three lengths: of the expected value (2 bytes), of the new value (2 bytes), and of the text of
--   the new value's ms to live (1 byte); then the expected value, the new value, and that text. One long text costs the
--   client a fraction of many short ones, and a binary length costs the server less than a decimal one.
-- ARGV[5] and further: the expected and the new value of each key for which both lengths are 0. Lua hashes each byte of
--   each string that it makes: an argument is hashed once, a part of ARGV[4] twice. For long values, that counts.
--
-- Replies for each key: 1 if the new value is stored, now or by an earlier sending of this call; else what the key
-- holds, nil if nothing; or {error}. If the server refuses, the error alone.
local life, mark, ended_life, values = unpack(ARGV, 1, 4)
local byte, sub, pcall = string.byte, string.sub, redis.pcall
local ID_ENDS = 19
local at, argument = 1, 5
local replies = {}
for i, key in ipairs(KEYS) do
  local a, b, c, d, digits = byte(values, at, at + 4)
  local begin = at + 5
  local middle = begin + a * 256 + b
  local last = middle + c * 256 + d
  at = last + digits
  local expected, new, new_life = sub(values, begin, middle - 1), sub(values, middle, last - 1), sub(values, last, at - 1)
  if expected == '' then
    expected, new = ARGV[argument], ARGV[argument + 1]
    argument = argument + 2
  end
  -- A single command if the key holds what is expected, as nearly always.
  local held = pcall('SET', key, new, 'XX', 'GET', 'PX', new_life)
  if held == expected or held == new then
    replies[i] = 1
  elseif type(held) == 'table' then
    -- Redis before 7 puts the position in the script first, and no code before some errors.
    local err = string.match(held.err, '^@user_script: %d+: %-?(.*)') or held.err
    if not string.find(err, '^%u+ ') then
      err = 'ERR ' .. err
    end
    -- It is the server that refuses, not this key, and nothing is stored: the call fails.
    if i == 1 and sub(err, 1, 9) ~= 'WRONGTYPE' then
      return { err = err }
    end
    replies[i] = { err }
  else
    if held then
      -- The SET above has replaced what the key held: put that back. The time that it had left is not known, and asking
      -- would take one more command for each view. So it gets its full time to live again, also if it is what is left of
      -- an ended session.
      local is_ended = sub(held, ID_ENDS + 1, ID_ENDS + #mark) == mark
      redis.call('SET', key, held, 'PX', is_ended and ended_life or life)
    end
    replies[i] = held
  end
end
return replies
