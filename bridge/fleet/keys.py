"""What is kept in Redis, under which key, and the scripts that change it.

A script is one step for Redis: nobody sees half of a takeover. Each may be asked again
when its answer was lost. Talks to nobody.

key                  type    kept for  bytes    what; who writes it, when
bridge:call:{sid}    hash    15 s      150      who has a call: its instance, when the
                                                stream starts and with each beat; gone
                                                when it ends
bridge:calls         zset    60 s      40/call  the running calls; with the one above
bridge:next:{sid}    string  60 s      150      what follows; when the stream ends, gone
                                                with a new one
bridge:shelf:{name}  string  as asked  its own  conversations, plans, orders, messages
                                                seen; by `put` and `first`
bridge:taken:{id}    string  10 s      its own  what was just taken, for an asker that
                                                missed the answer; by `take`
bridge:count:{name}  string  as asked  20       a total, such as what a day has cost; by
                                                `count`
bridge:in:{name}     zset    as asked  50 each  who is in it (the calls of a caller), by
                                                the moment of their end; by `let_in`
bridge:instances     hash    6 s       80 each  who is there, with how many calls; each
                                                with its beat, gone when it closes
bridge:era           string  1 day     8        that the data is the same as before;
                                                with each beat
bridge:words         channel -         100      words for running calls; by `tell` and
                                                takeovers

Strings, but for counters, begin with 17 bytes: when they were written, and whether
there is anything (written.py). For one primary, not for Redis Cluster: a script touches
several keys.

The key layout - names, types, the 17 bytes, what scripts expect of a key - is a part of
the fleet format (formats.py); 0 and 1 have the same. Instances of two versions use the
same keys at the same time, so a key is renamed like this:

1. The format that renames it is negotiated like any other: an instance uses the new
   name only while `Registry.format()` says so, that is when all instances know it.
2. Instances change over within one beat, not in one moment. Therefore a version with
   two layouts reads both names, and a script that takes, is the first, counts, lets in,
   holds or closes gets the keys of both: two instances with different names must not
   both be the first, or both have a call.
3. When `Registry.format()` changes, in either direction, an instance writes all that it
   knows under the names that are in use now, as after an outage (`_put_back(0)`).
4. The next format drops the old name.

Never renamed, nor changed in their shape: `bridge:instances`, with its fields
`{milliseconds} {JSON object}` (an instance announces its format there), and
`bridge:words`, with its messages `[instance, call sid, stream sid, base64]` (an
instance ignores a message that it does not know). A new hash field needs no new format.
"""

import base64
import hashlib

from bridge.fleet import TAKEN

CALL, NEXT, SHELF, JUST_TAKEN, COUNTED, INSIDE = (
    "bridge:call:",
    "bridge:next:",
    "bridge:shelf:",
    "bridge:taken:",
    "bridge:count:",
    "bridge:in:",
)
CALLS, INSTANCES, ERA, WORDS = (
    "bridge:calls",
    "bridge:instances",
    "bridge:era",
    "bridge:words",
)
CALLS_SECONDS = 60.0
"""Each beat of whoever has a call prolongs it."""

JUST_TAKEN_SECONDS = 10.0
"""Whoever takes asks again for some seconds at most."""


class Script:
    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS call, calls, next. ARGV sid, stream, instance, started, since, ttl, ttl of calls,
# "new" or "again". Answers since when the stream has the call; nothing where another
# one has it that began later. Clocks of instances need not agree: who is new is always
# the last.
HOLD = Script(f"""
local had = redis.call('HMGET', KEYS[1], 'stream', 'instance', 'since')
local since = tonumber(ARGV[5])
if had[1] and had[1] ~= ARGV[2] then
  if ARGV[8] == 'new' then
    since = math.max(since, tonumber(had[3]) + 0.001)
  elseif tonumber(had[3]) >= since then
    return false
  end
  if had[2] ~= ARGV[3] then
    redis.call('PUBLISH', '{WORDS}', cjson.encode(
      {{ARGV[3], ARGV[1], had[1], '{base64.b64encode(TAKEN).decode()}'}}))
  end
end
local text = string.format('%.3f', since)
redis.call('HSET', KEYS[1], 'stream', ARGV[2], 'instance', ARGV[3],
  'started', ARGV[4], 'since', text)
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('ZADD', KEYS[2], text, ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
if ARGV[8] == 'new' then redis.call('DEL', KEYS[3]) end
return text
""")

# KEYS calls, call... ARGV ttl of calls, ttl, stream... Answers the numbers of those
# that are not, or no more, ours.
RENEW = Script("""
local lost = {}
for i = 2, #KEYS do
  if redis.call('HGET', KEYS[i], 'stream') == ARGV[i + 1] then
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  else
    lost[#lost + 1] = i - 2
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return lost
""")

# KEYS call, calls, next. ARGV sid, stream, since, what follows or "", ttl, "new" or
# "again": then what follows is not touched. Answers 0 where a newer stream has it.
CLOSE = Script("""
local has = redis.call('HMGET', KEYS[1], 'stream', 'since')
if has[1] and has[1] ~= ARGV[2] and tonumber(has[2]) > tonumber(ARGV[3]) then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[6] == 'again' then return 1 end
if ARGV[4] == '' then
  redis.call('DEL', KEYS[3])
else
  redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5])
end
return 1
""")

# KEYS calls, call... ARGV sid... Takes off the list whose instance is gone.
STRIKE = Script("""
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('ZREM', KEYS[1], ARGV[i - 1])
  end
end
""")

# KEYS string, just taken. ARGV now (a stamp), ttl of both. Asked again it answers the
# same. That there is nothing is kept, too: or who put it there would put it back, when
# it has lost Redis and finds it again.
TAKE = Script("""
local mine = redis.call('GET', KEYS[2])
if mine then return mine end
if redis.call('GETRANGE', KEYS[1], 16, 16) ~= '+' then return false end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
mine = redis.call('GET', KEYS[2])
local stamp = math.max(tonumber(ARGV[1]), tonumber(string.sub(mine, 1, 16)))
redis.call('SET', KEYS[1], string.format('%016.0f-', stamp), 'PX', ARGV[2])
return mine
""")

# KEYS string. ARGV its text, ttl. Answers 0 where there was something, 2 where it is
# the same: maybe an answer was lost, and it is asked again.
FIRST = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return 2 end
if redis.call('GETRANGE', KEYS[1], 16, 16) == '+' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")

# KEYS string. ARGV its text, ttl. Something newer stays.
AGAIN = Script("""
local there = redis.call('GETRANGE', KEYS[1], 0, 15)
if there ~= '' and tonumber(there) >= tonumber(string.sub(ARGV[1], 1, 16)) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")

# KEYS instances, era. ARGV instance, what it tells of itself, ttl, a new era. Answers
# the era, then by turns an instance and what it tells. By Redis' own clock. An instance
# whose time is over has ended without leaving: one asker is told so, by an empty text.
# Not where the asker's own time is nearly over as well: Redis was away, not the others.
BEAT = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = redis.call('HGET', KEYS[1], ARGV[1])
local in_time = mine and
  tonumber(string.match(mine, '^%d+') or 0) >= now + tonumber(ARGV[3]) / 2
redis.call('HSET', KEYS[1], ARGV[1],
  string.format('%.0f ', now + tonumber(ARGV[3])) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local era = redis.call('GET', KEYS[2]) or ARGV[4]
redis.call('SET', KEYS[2], era, 'EX', 86400)
local told = {era}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local till, what = string.match(all[i + 1], '^(%d+) (.*)$')
  if till and tonumber(till) >= now then
    told[#told + 1] = all[i]
    told[#told + 1] = what
  else
    redis.call('HDEL', KEYS[1], all[i])
    if in_time then
      told[#told + 1] = all[i]
      told[#told + 1] = ''
    end
  end
end
return told
""")

# KEYS counter. ARGV what is added, what the instance knows was there, for how long yet
# (ms), ttl of a new one. Answers the total and how long it is kept. What an instance
# knows was there is there: an emptied Redis learns it again.
COUNT = Script("""
local left = redis.call('PTTL', KEYS[1])
local total, known = 0, tonumber(ARGV[2])
if left > 0 then
  total = math.max(tonumber(redis.call('GET', KEYS[1])), known)
elseif known > 0 then
  total, left = known, tonumber(ARGV[3])
else
  left = tonumber(ARGV[4])
end
local sum = string.format('%.17g', total + tonumber(ARGV[1]))
if tonumber(sum) > 0 then redis.call('SET', KEYS[1], sum, 'PX', left) end
return {sum, left}
""")

# KEYS zset. ARGV who, ttl, how many others at most or "". Answers 0 where there are so
# many. By Redis' own clock.
LET_IN = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[3] ~= '' and not redis.call('ZSCORE', KEYS[1], ARGV[1])
    and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  return 0
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
""")

SCRIPTS = (HOLD, RENEW, CLOSE, STRIKE, TAKE, FIRST, AGAIN, BEAT, COUNT, LET_IN)
