package redisstore

import "github.com/redis/go-redis/v9"

// Every script answers with an array: "OK", "FENCED", "LOST" or "HELD", then details.
//
// guard turns what a stranger's value in our place makes Redis say (a key of the
// wrong type, a stream whose last id is beyond ours) into LOST: a full
// publication replaces it. Everything else (read-only replica, out of memory) is
// an error.
const guard = `
local function guard(f)
  local ok, res = pcall(f)
  if ok then return res end
  local msg = type(res) == 'table' and res.err or tostring(res)
  if string.find(msg, 'WRONGTYPE', 1, true) or string.find(msg, 'equal or smaller', 1, true) then
    return {'LOST', msg}
  end
  return redis.error_reply(msg)
end
local function num(v)
  local n = tonumber(v)
  if n and n >= 0 and n <= 9007199254740991 then return n end
  return nil
end
local function held(key, instance, over)
  local l = redis.pcall('GET', key)
  if type(l) ~= 'string' then
    if type(l) == 'table' then redis.call('DEL', key) end
    return nil
  end
  local ok, t = pcall(cjson.decode, l)
  if not ok or type(t) ~= 'table' or type(t.body) ~= 'table' then return nil end
  local b = t.body
  if type(b.instance) ~= 'string' or type(b.owner) ~= 'string' or type(b.beat) ~= 'number' then return nil end
  if b.instance == '' or #b.instance > 128 or #b.owner > 128 then return nil end
  if b.instance == instance or (over ~= '' and b.instance == over) then return nil end
  -- no daemon writes a lease that never ends, and one would lock the node for ever
  local left = redis.call('PTTL', key)
  if left < 0 or left > 3600000 then return nil end
  return {'HELD', b.owner, b.instance, string.format('%.0f', b.beat)}
end
`

// begin claims a term for a publication.
// KEYS lease meta; ARGV instance over lowest-term garbage-ttl
var begin = redis.NewScript(guard + `
return guard(function()
  local other = held(KEYS[1], ARGV[1], ARGV[2])
  if other then return other end
  local m = redis.pcall('HMGET', KEYS[2], 'term', 'next')
  local old, last = 0, 0
  if m.err then
    redis.call('DEL', KEYS[2])
  else
    old = num(m[1]) or 0
    last = math.max(old, num(m[2]) or 0)
  end
  local term = math.max(last + 1, tonumber(ARGV[3]))
  if term > 9007199254740991 then
    redis.call('DEL', KEYS[2])
    term = tonumber(ARGV[3])
  end
  redis.call('HSET', KEYS[2], 'next', string.format('%.0f', term))
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  return {'OK', string.format('%.0f', term), string.format('%.0f', old)}
end)`)

// commit makes a filled hash the node's records.
// KEYS meta new-rec log old-rec; ARGV term epoch digests count garbage-ttl channel node
var commit = redis.NewScript(guard + packTold + `
return guard(function()
  if redis.call('HGET', KEYS[1], 'next') ~= ARGV[1] then
    return {'FENCED', 'another publication began later'}
  end
  if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[4]) then
    return {'LOST', 'the new records changed before they counted'}
  end
  redis.call('DEL', KEYS[3])
  local entry = {'v', '1', 'p', '0', 'k', 'reset', 'd', ARGV[3], 'e', ARGV[2]}
  redis.call('XADD', KEYS[3], ARGV[1] .. '-1', unpack(entry))
  redis.call('HSET', KEYS[1], 'v', '1', 'term', ARGV[1], 'seq', '1', 'epoch', ARGV[2])
  for _, k in ipairs({KEYS[1], KEYS[2], KEYS[3]}) do redis.call('PEXPIRE', k, ARGV[5]) end
  if KEYS[4] ~= KEYS[2] then redis.call('UNLINK', KEYS[4]) end
  tell(ARGV[6], ARGV[7], ARGV[1] .. '-1', entry)
  return {'OK'}
end)`)

// appendBatch applies a batch. The stream comes first: if it refuses the id,
// nothing was written.
// KEYS meta rec log; ARGV term seq prev max-length digests epoch puts channel node
// then puts pairs of field and value, then fields to remove
var appendBatch = redis.NewScript(guard + packTold + `
return guard(function()
  local m = redis.call('HMGET', KEYS[1], 'term', 'seq')
  local term, seq = num(m[1]), num(m[2])
  local t, s, prev = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
  if not term or not seq or term < t then return {'LOST', 'term ' .. tostring(m[1])} end
  if term > t or seq > s then return {'FENCED', 'term ' .. m[1] .. ' sequence ' .. m[2]} end
  if seq == s then return {'OK'} end
  if seq < prev then return {'LOST', 'sequence ' .. m[2]} end
  local entry = {'v', '1', 'p', m[2], 'd', ARGV[5], 'e', ARGV[6]}
  local put, del = {}, {}
  local i = 10
  for _ = 1, tonumber(ARGV[7]) do
    entry[#entry + 1] = '+' .. ARGV[i]
    entry[#entry + 1] = ARGV[i + 1]
    put[#put + 1] = ARGV[i]
    put[#put + 1] = ARGV[2] .. ' ' .. ARGV[i + 1]
    i = i + 2
  end
  for j = i, #ARGV do
    entry[#entry + 1] = '-' .. ARGV[j]
    entry[#entry + 1] = ''
    del[#del + 1] = ARGV[j]
  end
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], ARGV[1] .. '-' .. ARGV[2], unpack(entry))
  if #put > 0 then redis.call('HSET', KEYS[2], unpack(put)) end
  if #del > 0 then redis.call('HDEL', KEYS[2], unpack(del)) end
  redis.call('HSET', KEYS[1], 'seq', ARGV[2])
  tell(ARGV[8], ARGV[9], ARGV[1] .. '-' .. ARGV[2], entry)
  return {'OK'}
end)`)

// renew writes the lease and looks at what the store holds.
// KEYS lease meta rec log heads; ARGV lease ttl term seq instance over count garbage-ttl (0: not now)
// field mark
var renew = redis.NewScript(guard + markField + `
return guard(function()
  local other = held(KEYS[1], ARGV[5], ARGV[6])
  if other then return other end
  local t, s = tonumber(ARGV[3]), tonumber(ARGV[4])
  local m, term, seq = {}, nil, nil
  if t > 0 then
    m = redis.pcall('HMGET', KEYS[2], 'term', 'seq')
    if not m.err then term, seq = num(m[1]), num(m[2]) end
    if term and term > t then return {'FENCED', 'term ' .. m[1]} end
  end
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  local err = markField(KEYS[5], ARGV[9], ARGV[10])
  if err then return err end
  if t == 0 then return {'OK'} end
  if not term or not seq or term < t or seq < s then
    return {'LOST', 'term ' .. tostring(m[1]) .. ' sequence ' .. tostring(m[2])}
  end
  if ARGV[8] ~= '0' then
    for i = 2, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[8]) end
  end
  if seq == s and redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[7]) then
    return {'LOST', 'another number of records'}
  end
  return {'OK'}
end)`)

// goOn renews a lease that says what it said before. Answers FULL when another one stands there.
// KEYS lease heads; ARGV instance beat clock ttl field mark, the first three as they stand in the text
var goOn = redis.NewScript(markField + `
local l = redis.pcall('GET', KEYS[1])
if type(l) ~= 'string' or not string.find(l, ARGV[1], 1, true) then return {'FULL'} end
l = string.gsub(l, '"beat":%d+', ARGV[2], 1)
l = string.gsub(l, '"clock":%d+', ARGV[3], 1)
redis.call('SET', KEYS[1], l, 'PX', ARGV[4])
return markField(KEYS[2], ARGV[5], ARGV[6]) or {'OK'}`)

// leave ends a lease that is still the caller's.
// KEYS lease heads; ARGV instance field
var leave = redis.NewScript(guard + `
return guard(function()
  local l = redis.pcall('GET', KEYS[1])
  if type(l) ~= 'string' then return {'OK'} end
  local ok, t = pcall(cjson.decode, l)
  if ok and type(t) == 'table' and type(t.body) == 'table' and t.body.instance == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.pcall('HDEL', KEYS[2], ARGV[2])
  end
  return {'OK'}
end)`)

// readMembers returns names and announcements in turn, "" for one that is too long, or
// one word alone when there are too many to look at at once.
// KEYS members; ARGV longest most
var readMembers = redis.NewScript(`
local t = redis.call('TYPE', KEYS[1]).ok
if t ~= 'hash' and t ~= 'none' then return redis.error_reply('WRONGTYPE the members are a ' .. t) end
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[2]) then return {'MANY'} end
local out = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  local text = ''
  if redis.call('HSTRLEN', KEYS[1], name) <= tonumber(ARGV[1]) then text = redis.call('HGET', KEYS[1], name) end
  if #name > 64 then name, text = 'x', '' end
  out[#out + 1] = name
  out[#out + 1] = text
end
return out`)
