-- SET … IFEQ for servers that lack it, and for several sessions in one call: each key gets its new value if it holds the
-- expected one. A value never comes again, so each is stored once, however often the call arrives.
--
-- KEYS: sessions. ARGV: ms that a session lives; how the value of an ended one begins, after its id; ms that this
-- lives; and all values in one text, because a text costs the client a fraction of what many cost: for each key the
-- length of the value that is expected, that of the new one, the ms that this lives, and both values.
--
-- Replies for each key: 1 if the new value is stored, now or by an earlier sending of this call; else what the key
-- holds, nil if nothing; or {error}. If the server refuses, the error alone.
local life, mark, ended_life, values = unpack(ARGV)
local ID_ENDS = 19
local at = 1
local replies = {}
for i, key in ipairs(KEYS) do
  local _, head, size, new_size, new_life = string.find(values, '^(%d+) (%d+) (%d+) ', at)
  local middle = head + size
  at = middle + new_size + 1
  local expected, new = string.sub(values, head + 1, middle), string.sub(values, middle + 1, at - 1)
  -- A single command if the key holds what is expected, as nearly always.
  local held = redis.pcall('SET', key, new, 'XX', 'GET', 'PX', new_life)
  if type(held) == 'table' then
    -- Redis before 7 puts the position in the script first, and no code before some errors.
    local err = string.match(held.err, '^@user_script: %d+: %-?(.*)') or held.err
    if not string.find(err, '^%u+ ') then
      err = 'ERR ' .. err
    end
    -- It is the server that refuses, not this key, and nothing is stored: the call fails.
    if i == 1 and string.sub(err, 1, 9) ~= 'WRONGTYPE' then
      return { err = err }
    end
    replies[i] = { err }
  elseif held == expected or held == new then
    replies[i] = 1
  else
    if held then
      local is_ended = string.sub(held, ID_ENDS + 1, ID_ENDS + #mark) == mark
      redis.call('SET', key, held, 'PX', is_ended and ended_life or life)
    end
    replies[i] = held
  end
end
return replies
