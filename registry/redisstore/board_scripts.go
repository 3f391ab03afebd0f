package redisstore

import "github.com/redis/go-redis/v9"

// The keys of a kind, which both scripts get: notes revisions ends heads.
const boardGuard = `
local function num(v)
  local n = tonumber(v)
  if n and n >= 0 and n <= 9007199254740991 and n == math.floor(n) then return n end
  return nil
end
local function text(n) return string.format('%.0f', n) end
local function now() -- in milliseconds, in microseconds
  local t = redis.call('TIME')
  local us = tonumber(t[1]) * 1000000 + tonumber(t[2])
  return math.floor(us / 1000), us
end
local function is(key, want)
  local t = redis.call('TYPE', key).ok
  return t == 'none' or t == want
end
`

// postNotes writes notes and removes those that ended. What a stranger put in our place
// goes: keys of the wrong type, and values and revisions without each other.
// ARGV kind max-notes channel, then key, milliseconds (0 for ever) and value of every note.
// A channel that is not empty is told; a user that may not publish there still posts.
// Answers OK and how many had no room.
var postNotes = redis.NewScript(boardGuard + `
local notes, revisions, ends, heads = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local limit = tonumber(ARGV[2])
if not is(notes, 'hash') then redis.call('DEL', notes) end
if not is(revisions, 'zset') then redis.call('DEL', revisions) end
if not is(ends, 'zset') then redis.call('DEL', ends) end
if not is(heads, 'hash') then redis.call('DEL', heads) end

local function drop(key)
  redis.call('HDEL', notes, key)
  redis.call('ZREM', revisions, key)
  redis.call('ZREM', ends, key)
  redis.call('HDEL', heads, ARGV[1] .. '|' .. key)
end
local ms, us = now()
for _, key in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', ms, 'LIMIT', 0, limit)) do drop(key) end

local held = redis.call('HLEN', notes)
if held ~= redis.call('ZCARD', revisions) then
  if held > 2 * limit or redis.call('ZCARD', revisions) > 2 * limit then
    redis.call('UNLINK', notes, revisions, ends)
  else
    for _, key in ipairs(redis.call('HKEYS', notes)) do
      if not redis.call('ZSCORE', revisions, key) then drop(key) end
    end
    for _, key in ipairs(redis.call('ZRANGE', revisions, 0, -1)) do
      if redis.call('HEXISTS', notes, key) == 0 then drop(key) end
    end
  end
  held = redis.call('HLEN', notes)
end

local head = num(redis.call('HGET', heads, ARGV[1])) or 0
local before, refused = head, 0
for i = 4, #ARGV, 3 do
  local key, ttl, value = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local known = redis.call('HEXISTS', notes, key) == 1
  if value == '' then
    if known then
      drop(key)
      held = held - 1
      head = math.max(head + 1, us)
    end
  elseif not known and held >= limit then
    refused = refused + 1
  else
    -- the clock keeps revisions growing when the last one was lost
    head = math.max(head + 1, us)
    if head > 9007199254740991 then head = us end
    redis.call('HSET', notes, key, value)
    redis.call('ZADD', revisions, text(head), key)
    if ttl > 0 then redis.call('ZADD', ends, text(ms + ttl), key) else redis.call('ZREM', ends, key) end
    if not known then held = held + 1 end
  end
end
if head ~= before then
  redis.call('HSET', heads, ARGV[1], text(head))
  if ARGV[3] ~= '' then redis.pcall('PUBLISH', ARGV[3], '') end
end
return {'OK', tostring(refused)}`)

// readNotes reads a page of notes in the order of their revisions.
// ARGV after max-value max-key page-bytes max-notes
// Answers as parsePage says.
var readNotes = redis.NewScript(boardGuard + `
local notes, revisions, ends, heads = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local after = tonumber(ARGV[1])
local kind = string.match(notes, ':([a-z]+):notes$')
if not is(heads, 'hash') then return {'OK', '0', '0', '0', '1'} end
local head = num(redis.call('HGET', heads, kind)) or 0
if head == after then return {'OK', text(head), text(after), '0', '0'} end
if head < after then after = 0 end
if not (is(notes, 'hash') and is(revisions, 'zset') and is(ends, 'zset')) then
  return {'OK', text(head), text(head), '0', '1'}
end
local maxValue, maxKey, budget, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local ms, us = now()
local out = {'OK', text(head), '0', '0', '0'}
local bad, next, more = 0, after, false
local found = redis.call('ZRANGEBYSCORE', revisions, '(' .. text(after), '9007199254740991', 'WITHSCORES', 'LIMIT', 0, limit)
for i = 1, #found, 2 do
  local key, revision = found[i], num(found[i + 1])
  local size = #key <= maxKey and redis.call('HSTRLEN', notes, key) or 0
  if not revision or size == 0 or size > maxValue then
    bad = bad + 1
  else
    -- a page ends before a note that has no room, and never within one revision
    if budget < size and #out > 5 and revision > next then
      more = true
      break
    end
    next = revision
    local over = redis.call('ZSCORE', ends, key)
    local left = 0
    if over then left = (num(over) or 0) - ms end
    if not over or left > 0 then
      budget = budget - size
      out[#out + 1] = key
      out[#out + 1] = text(revision)
      out[#out + 1] = text(left)
      out[#out + 1] = text(math.max(0, math.floor((us - revision) / 1000)))
      out[#out + 1] = redis.call('HGET', notes, key)
    end
  end
end
if more then
  out[3], out[4] = text(next), '1'
else
  out[3] = text(head)
end
out[5] = tostring(bad)
return out`)

// holdNote puts off the end of a note that was not posted again since.
// KEYS revisions ends; ARGV key revision milliseconds. Answers OK and whether it did.
var holdNote = redis.NewScript(boardGuard + `
local ms = now()
local revision = redis.pcall('ZSCORE', KEYS[1], ARGV[1])
if type(revision) ~= 'string' or tonumber(revision) ~= tonumber(ARGV[2]) then return {'OK', '0'} end
-- one that is over may have been seen to be
local over = redis.pcall('ZSCORE', KEYS[2], ARGV[1])
if type(over) ~= 'string' or (num(over) or 0) <= ms then return {'OK', '0'} end
redis.call('ZADD', KEYS[2], text(ms + tonumber(ARGV[3])), ARGV[1])
return {'OK', '1'}`)
