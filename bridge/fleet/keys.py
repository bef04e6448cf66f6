"""The Redis keys of the bridge, and the scripts that change them.

A script is atomic: no instance sees half of a takeover. Each script may be repeated
when its answer was lost. This module has no connection of its own.

key                    type    kept for  bytes    content; written by, when
bridge:call:{sid}      hash    15 s      200      the instance and stream that have the
                                                  call; when the stream starts and with
                                                  each beat; deleted when it ends
bridge:calls           zset    60 s      40/call  the running calls; as the one above
bridge:next:{sid}      string  60 s, and 150      the next step; when the stream ends;
                               a ringing          deleted when a new stream starts
bridge:store:{name}    string  given     its own  snapshots, plans, orders, spent
                                                  tickets; `put`, `set_if_absent`
                               20 min    17       a tombstone; `delete`, and `pop` (for
                                                  as long as the value had)
bridge:popped:{id}     string  10 s      its own  a value that was popped, for an
                                                  instance that missed the answer; `pop`
bridge:count:{name}    string  given     20       a total, such as the cost of a day;
                                                  `count`
bridge:members:{name}  zset    given     50 each  members (the calls of a caller) by the
                                                  time at which they expire; `acquire`
bridge:instances       hash    6 s       80 each  the live instances and their load;
                                                  with each beat; deleted on shutdown
bridge:era             string  1 day     8        changes if Redis has lost its data;
                                                  with each beat
bridge:words           channel -         100      messages for running calls; `publish`
                                                  and takeovers
bridge:requests:{id}   channel -         1 kB to  requests and answers for the instance
                                         1 MB     with this id; `send`

Strings, but for counters, begin with 17 bytes: the time of writing, and whether there
is a value (written_values.py). For one primary, not for Redis Cluster: a script touches
several keys.

Another program, a fault or an attacker may put anything under these names. A script
ignores what the bridge cannot have written: a key of another type, a text of another
form, a value that is too large. It counts as missing, and is replaced where the script
writes. `Script` says how an answer names what was ignored.

The key layout - names, types, the 17 bytes, what scripts expect of a key - is a part of
the fleet format (formats.py). Format 2 has renamed keys: `names` gives the names of a
key in format 2 and in format 1. Instances of two versions use the same Redis at the
same time, and they change over within one beat, not in one moment. Therefore:

1. An instance writes values (`put`, `delete`) under the name of the format that
   `Registry.format()` gives. It reads both names; the newest stamp counts. `pop` takes
   the newest value and leaves a tombstone under both names.
2. When that format changes, an instance copies what Redis has under the other names to
   the names in use. If the format became older it moves the values: an older instance
   that pops a value must not leave a second copy.
3. Tickets and quotas (`set_if_absent`, `acquire`, `count`) cannot wait for that beat:
   an older instance that has just joined would accept a used ticket. Therefore format 2
   writes both names, format 1 writes the old one alone, and the old name decides
   (`set_if_absent`: either).
4. The version of format 3 drops the old names, with `_FORMAT_1`.

`bridge:popped:{id}` is read only by the instance that has made up the id, so it may be
renamed at any time.

Never renamed, nor changed in their shape: `bridge:instances`, with its fields
`{milliseconds} {JSON object}` (an instance announces its format there), and
`bridge:words`, with its messages `[instance, call sid, stream sid, base64]` (an
instance ignores a message that it does not know). A new hash field needs no new format.
Messages on `bridge:requests:{id}` are signed objects (requests.py), whose new fields
have defaults; an instance of a version without that channel counts as gone.
"""

import base64
import hashlib

from bridge.fleet import MAX_MEMBERS, TAKEN
from bridge.fleet.written_values import AHEAD_SECONDS
from bridge.telemetry.metrics import REDIS_KEYS

CALL, NEXT, STORE, POPPED, COUNTER, MEMBERS = (
    "bridge:call:",
    "bridge:next:",
    "bridge:store:",
    "bridge:popped:",
    "bridge:count:",
    "bridge:members:",
)
CALLS, INSTANCES, ERA, MESSAGES, REQUESTS = (
    "bridge:calls",
    "bridge:instances",
    "bridge:era",
    "bridge:words",
    "bridge:requests:",
)
MAX_MESSAGE_BYTES = 2**20
"""The largest message that is read; a body of the API has 64 kB at most."""

CALLS_SECONDS = 60.0
"""Each beat of an instance that has a call prolongs it."""

POPPED_SECONDS = 10.0
"""An instance repeats a `pop` for some seconds at most."""

DELETED_SECONDS = 1200.0
"""A tombstone of `delete` lasts at least as long as any snapshot: an instance that has
lost Redis puts back what it has written meanwhile."""

LATE_SECONDS = 5.0
"""A script that is later than this counts as new. An instance waits half a second for
an answer and then drops the connection; the rest is for a Redis that was stopped
meanwhile and reads what is left in its sockets."""

MEMBER_SECONDS = 5 * 3600.0
"""The longest time of a member, that of an outbound call: a longer one is not of a
bridge. Members of one set may have different times."""

_AHEAD_US, _LATE_US = round(AHEAD_SECONDS * 1e6), round(LATE_SECONDS * 1e6)

SNAPSHOT = f"{STORE}snapshot:"

_FORMAT_1 = {
    STORE: (
        "bridge:shelf:",
        {
            "snapshot": "talk",
            "answered_by": "amd",
            "stream_ended": "ended",
            "final_status": "final",
            "resume_count": "resumed",
            "refusal_count": "refused",
            "late_ticket": "late-ticket",
        },
    ),
    COUNTER: (COUNTER, {"admitted": "let_in"}),
    MEMBERS: ("bridge:in:", {"hourly_calls": "hour"}),
}
"""Prefix -> its name in format 1, and the names of stored values in format 1."""

STORE_1 = _FORMAT_1[STORE][0]
_FROM_FORMAT_1 = {old: name for name, old in _FORMAT_1[STORE][1].items()}


def format_1(key: str) -> str:
    """The name that this key has in format 1."""
    for prefix, (old_prefix, old_names) in _FORMAT_1.items():
        if key.startswith(prefix):
            name, colon, rest = key.removeprefix(prefix).partition(":")
            return f"{old_prefix}{old_names.get(name, name)}{colon}{rest}"
    return key


def from_format_1(old: str) -> str:
    """The key of a stored value whose name in format 1 is `old`."""
    name, colon, rest = old.removeprefix(STORE_1).partition(":")
    return f"{STORE}{_FROM_FORMAT_1.get(name, name)}{colon}{rest}"


def kind_of(key: str) -> str:
    """The kind of a key: one of REDIS_KEYS. The names of format 1 have the same."""
    for prefix, (old_prefix, _) in _FORMAT_1.items():
        if key.startswith(old_prefix):
            key = prefix
    kind = key.removeprefix("bridge:").partition(":")[0]
    return kind if key.startswith("bridge:") and kind in REDIS_KEYS else "other"


def names(key: str, format: int) -> tuple[str, ...]:
    """The names under which `key` is read: first the one that this format writes. One
    name if the formats have the same."""
    old = format_1(key)
    both = (old, key) if format == 1 else (key, old)
    return tuple(dict.fromkeys(both))


def claimed(key: str, format: int) -> tuple[str, ...]:
    """The names under which `acquire` and `count` write `key`: first the one that
    decides."""
    return tuple(dict.fromkeys((format_1(key), key)))[:format]


MAX_VALUE_BYTES = 16 * 2**20
"""The largest value that is read; a snapshot of a call of four hours has about 5 MB. A
larger one would not arrive before the timeout, or would block the event loop."""

MAX_LISTED_CALLS = 5000
MAX_INSTANCES = 1000

_PRELUDE = f"""
local ignored = {{}}
local function ignore(n, why)
  if #ignored < 100 then ignored[#ignored + 1] = n .. ' ' .. why end
end
-- The answer of a command about KEYS[n]; nil if that key has another type.
local function try(n, ...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if not string.find(answer.err, 'WRONGTYPE', 1, true) then redis.call(...) end
  ignore(n, 'type')
  return nil
end
-- The stamp and the flag of the string KEYS[n]; '' if there is none.
local function head(n)
  local size = try(n, 'STRLEN', KEYS[n]) or 0
  if size == 0 then return '' end
  local text = redis.call('GETRANGE', KEYS[n], 0, 16)
  if size > {MAX_VALUE_BYTES} then
    ignore(n, 'size')
  elseif #text == 17 and string.find(text, '^%d+[+-]$') then
    return text
  else
    ignore(n, 'form')
  end
  return ''
end
local function number(text)
  local it = tonumber(text)
  return it and it > -1e15 and it < 1e15 and it or nil
end
local function is_name(text)
  return text and #text <= 200 and string.find(text, '^[!-~]+$')
end
-- The stream of the lease KEYS[n], its instance, since when, and `begun`.
local function lease(n)
  local has = try(n, 'HMGET', KEYS[n], 'stream', 'instance', 'since', 'begun')
  if has and not has[1] then return nil end
  if has and is_name(has[1]) and number(has[3]) then
    return has[1], has[2], number(has[3]), has[4]
  end
  if has then ignore(n, 'form') end
  redis.call('UNLINK', KEYS[n])
end
"""
"""Before every script."""


class Script:
    """Answers a list: the answer of `text`, then `{position in KEYS} {why}` for each
    key that was ignored. `why`: type, form, size."""

    def __init__(self, text: str) -> None:
        self.text = (
            f"{_PRELUDE}local function run(){text}end\n"
            "local answer = run()\n"
            "return {answer or false, unpack(ignored)}"
        )
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# KEYS call, calls, next. ARGV sid, stream, instance, started, since, ttl, ttl of calls,
# "new" or "again", the earliest and the latest time at which the stream has begun (ms
# of the clock of Redis; "" if unknown). Answers the time since which the stream has the
# call; nothing if a later stream has it. The clocks of instances need not agree: a new
# stream is always later than the one before. Unless its script was delayed and a later
# stream was faster: then `begun` is later than the new stream, by LATE_SECONDS at most,
# and it is past. If `begun` is still to come, the clock of Redis was set back or
# another Redis took over, and the times say nothing (100 ms: `begun` is a range). An
# earlier version of the bridge leaves `begun` as it is; therefore it names its stream.
HOLD = Script(f"""
local stream, instance, had_since, had_begun = lease(1)
local since = tonumber(ARGV[5])
if stream and stream ~= ARGV[2] then
  if ARGV[8] == 'new' then
    local of, begun = string.match(had_begun or '', '^(.*) (%d+)$')
    if of == stream and ARGV[10] ~= '' then
      local time = redis.call('TIME')
      local now = time[1] * 1000 + math.floor(time[2] / 1000)
      local late = tonumber(begun) - tonumber(ARGV[10])
      if late > 0 and late <= {_LATE_US // 1000} and tonumber(begun) <= now + 100 then
        return false
      end
    end
    since = math.max(since, had_since + 0.001)
  elseif had_since >= since then
    return false
  end
  if instance ~= ARGV[3] then
    redis.call('PUBLISH', '{MESSAGES}', cjson.encode(
      {{ARGV[3], ARGV[1], stream, '{base64.b64encode(TAKEN).decode()}'}}))
  end
end
local text = string.format('%.3f', since)
redis.call('HSET', KEYS[1], 'stream', ARGV[2], 'instance', ARGV[3],
  'started', ARGV[4], 'since', text, 'begun', ARGV[2] .. ' ' .. ARGV[9])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if not try(2, 'ZADD', KEYS[2], text, ARGV[1]) then
  redis.call('UNLINK', KEYS[2])
  redis.call('ZADD', KEYS[2], text, ARGV[1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[7])
if ARGV[8] == 'new' then redis.call('DEL', KEYS[3]) end
return text
""")

# KEYS calls, call... ARGV ttl of calls, ttl, stream... Answers the positions of the
# calls that do not belong to the given stream, or are not on the list.
RENEW = Script(f"""
local lost = {{}}
for i = 2, #KEYS do
  local score = redis.pcall('ZSCORE', KEYS[1], string.sub(KEYS[i], {len(CALL) + 1}))
  if redis.pcall('HGET', KEYS[i], 'stream') == ARGV[i + 1] then
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
    if type(score) ~= 'string' then lost[#lost + 1] = i - 2 end
  else
    lost[#lost + 1] = i - 2
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return lost
""")

# KEYS call, calls, next. ARGV sid, stream, since, the next step or "", ttl, "new" or
# "again" (the next step stays as it is). Answers 0 if a newer stream has the call.
CLOSE = Script("""
local stream, _, since = lease(1)
if stream and stream ~= ARGV[2] and since > tonumber(ARGV[3]) then
  return 0
end
redis.call('DEL', KEYS[1])
try(2, 'ZREM', KEYS[2], ARGV[1])
if ARGV[6] == 'again' then return 1 end
if ARGV[4] == '' then
  redis.call('DEL', KEYS[3])
else
  redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5])
end
return 1
""")

# KEYS calls. Answers the sids of the running calls, the oldest first.
LIST = Script(f"""
local found = {{}}
local all = try(1, 'ZRANGE', KEYS[1], 0, {MAX_LISTED_CALLS}) or {{}}
for i, sid in ipairs(all) do
  if i > {MAX_LISTED_CALLS} then
    ignore(1, 'size')
  elseif is_name(sid) then
    found[#found + 1] = sid
  else
    ignore(1, 'form')
    redis.call('ZREM', KEYS[1], sid)
  end
end
return found
""")

# KEYS calls, call... ARGV sid... Answers the stream, the instance and the start of each
# call; nothing for a call whose lease has expired, which leaves the list.
DESCRIBE = Script("""
local found = {}
for i = 2, #KEYS do
  found[i - 1] = false
  local has = try(i, 'HMGET', KEYS[i], 'stream', 'instance', 'started') or {}
  if is_name(has[1]) and is_name(has[2]) and number(has[3]) then
    found[i - 1] = has
  elseif has[1] then
    ignore(i, 'form')
  elseif redis.call('EXISTS', KEYS[i]) == 0 then
    try(1, 'ZREM', KEYS[1], ARGV[i - 1])
  end
end
return found
""")

# KEYS string... Answers the newest text; of a value and a tombstone with the same
# stamp, the tombstone (`-` sorts after `+`).
READ = Script("""
local from, newest = nil, ''
for i = 1, #KEYS do
  local text = head(i)
  if text > newest then from, newest = KEYS[i], text end
end
return from and redis.call('GET', from)
""")

# KEYS popped, string... ARGV now (a stamp), ttl. Takes the newest value; repeated, it
# answers the same. Every name gets a tombstone, for as long as the value had: else the
# instance that put the value there would put it back when it has lost Redis and finds
# it again.
POP = Script(f"""
local value = redis.call('GET', KEYS[1])
if value then return value end
local from, newest = nil, ''
for i = 2, #KEYS do
  local text = head(i)
  if text > newest then from, newest = KEYS[i], text end
end
if string.sub(newest, 17) ~= '+' then return false end
local left = math.max(redis.call('PTTL', from), tonumber(ARGV[2]))
redis.call('RENAME', from, KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local stamp, there = tonumber(ARGV[1]), tonumber(string.sub(newest, 1, 16))
if there > stamp and there <= stamp + {_AHEAD_US} then stamp = there end
local tombstone = string.format('%016.0f-', stamp)
for i = 2, #KEYS do
  if i == 2 or KEYS[i] == from or redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('SET', KEYS[i], tombstone, 'PX', left)
  end
end
return redis.call('GET', KEYS[1])
""")

# KEYS string... ARGV its text, ttl, under how many of the names it is written. Answers
# 0 if there was a value, 2 if there was the same value: the answer may have been lost,
# and the script is repeated.
SET_IF_ABSENT = Script("""
for i = 1, #KEYS do
  if string.sub(head(i), 17) == '+' then
    local same = redis.call('GETRANGE', KEYS[i], 0, #ARGV[1]) == ARGV[1]
    return same and 2 or 0
  end
end
for i = 1, tonumber(ARGV[3]) do
  redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
end
return 1
""")

# KEYS string, its other name. ARGV its text as it is written under the first name, ttl,
# "move" or "copy". Does nothing if the value under the other name has changed since the
# caller has read it. A newer value stays. Answers 1 if the value was written.
COPY = Script("""
local stamp = string.sub(ARGV[1], 1, 17)
if head(2) ~= stamp then return 0 end
local written = 0
if head(1) < stamp then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  written = 1
end
if ARGV[3] == 'move' then redis.call('DEL', KEYS[2]) end
return written
""")

# KEYS string. ARGV its text, ttl. A newer text stays: two writes may arrive in another
# order than they were sent, because each has its own connection. Then answers its
# stamp. A stamp that is too far ahead is not newer.
PUT = Script(f"""
local there = string.sub(head(1), 1, 16)
local stamp = tonumber(string.sub(ARGV[1], 1, 16))
if there ~= '' and tonumber(there) >= stamp
    and tonumber(there) <= stamp + {_AHEAD_US} then
  return there
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
""")

# KEYS string... ARGV now (a stamp), ttl. Always deletes, also a value whose clock is
# ahead. Answers the tombstone. It is later than that value by the time by which another
# write of that clock may be late. Not if that is so far ahead that a write of the
# caller that is late would not find it newer.
DELETE = Script(f"""
local stamp, left = tonumber(ARGV[1]), tonumber(ARGV[2])
local far, own = stamp + {_AHEAD_US - 2 * _LATE_US}, stamp
for i = 1, #KEYS do
  local there = tonumber(string.sub(head(i), 1, 16)) or 0
  if there > own and there < far then
    stamp = math.max(stamp, there + {_LATE_US})
  end
  left = math.max(left, redis.call('PTTL', KEYS[i]))
end
local tombstone = string.format('%016.0f-', stamp)
for i = 1, #KEYS do redis.call('SET', KEYS[i], tombstone, 'PX', left) end
return tombstone
""")

# KEYS instances, era. ARGV instance, its load, ttl, a new era. Answers the era, the
# time (ms), then each instance followed by its load. Uses the clock of Redis. An
# instance whose time is over has ended without leaving: one instance learns it by an
# empty load. No instance is reported lost if the asking one is nearly expired itself:
# then Redis was away, not the other instance.
BEAT = Script(f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local size = try(1, 'HLEN', KEYS[1])
if not size or size > {MAX_INSTANCES} then
  if size then ignore(1, 'size') end
  redis.call('UNLINK', KEYS[1])
end
local own = redis.call('HGET', KEYS[1], ARGV[1])
local in_time = own and
  tonumber(string.match(own, '^%d+') or 0) >= now + tonumber(ARGV[3]) / 2
redis.call('HSET', KEYS[1], ARGV[1],
  string.format('%.0f ', now + tonumber(ARGV[3])) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local era = ARGV[4]
local length = try(2, 'STRLEN', KEYS[2]) or 0
if length > 100 then
  ignore(2, 'size')
elseif length > 0 then
  era = redis.call('GET', KEYS[2])
end
redis.call('SET', KEYS[2], era, 'EX', 86400)
local answer = {{era, now}}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local till, load = string.match(all[i + 1], '^(%d+) (.*)$')
  local left = till and tonumber(till) - now
  if not left or left > {_AHEAD_US // 1000} or #load > 4096 or not is_name(all[i]) then
    ignore(1, 'form')
    redis.call('HDEL', KEYS[1], all[i])
  elseif left >= 0 then
    answer[#answer + 1] = all[i]
    answer[#answer + 1] = load
  else
    redis.call('HDEL', KEYS[1], all[i])
    if in_time then
      answer[#answer + 1] = all[i]
      answer[#answer + 1] = ''
    end
  end
end
return answer
""")

# KEYS counter, its other name. ARGV amount, the total that the instance knows, its
# remaining time (ms), ttl of a new counter. Answers the total and its remaining time.
# The known total counts if Redis has less: an emptied Redis learns it again. The first
# name decides; the other one gets a copy.
COUNT = Script("""
local left = redis.call('PTTL', KEYS[1])
local there, known = nil, tonumber(ARGV[2])
if left ~= -2 then
  local text = try(1, 'GETRANGE', KEYS[1], 0, 40)
  there = left > 0 and number(text) or nil
  if text and not there then ignore(1, 'form') end
end
local total = 0
if there then
  total = math.max(there, known)
elseif known > 0 then
  total, left = known, tonumber(ARGV[3])
else
  left = tonumber(ARGV[4])
end
local sum = string.format('%.17g', total + tonumber(ARGV[1]))
if tonumber(sum) > 0 then
  for _, key in ipairs(KEYS) do redis.call('SET', key, sum, 'PX', left) end
end
return {sum, left}
""")

# KEYS zset, its other name. ARGV member, ttl, limit of other members or "". Answers 0
# if the limit is reached. Uses the clock of Redis. The first name decides; the other
# one gets a copy.
ACQUIRE = Script(f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not try(1, 'ZREMRANGEBYSCORE', KEYS[1], '-inf', now) then
  redis.call('UNLINK', KEYS[1])
end
local longest = math.max(2 * tonumber(ARGV[2]), {MEMBER_SECONDS * 1000:.0f})
local far = string.format('(%.0f', now + longest + {_AHEAD_US // 1000})
if redis.call('ZREMRANGEBYSCORE', KEYS[1], far, '+inf') > 0 then ignore(1, 'form') end
if ARGV[3] ~= '' and not redis.call('ZSCORE', KEYS[1], ARGV[1])
    and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  return 0
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if KEYS[2] then
  redis.call('ZUNIONSTORE', KEYS[2], 1, KEYS[1])
  redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
end
return 1
""")

# KEYS zset. Answers its members, those that expire first at the beginning.
LIST_MEMBERS = Script(f"""
local time = redis.call('TIME')
local now = string.format('(%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return try(1, 'ZRANGEBYSCORE', KEYS[1], now, '+inf', 'LIMIT', 0, {MAX_MEMBERS})
""")

# KEYS zset, its other name. ARGV member.
RELEASE = Script("""
for i = 1, #KEYS do try(i, 'ZREM', KEYS[i], ARGV[1]) end
""")

SCRIPTS = (
    *(HOLD, RENEW, CLOSE, LIST, DESCRIBE, READ, POP, SET_IF_ABSENT),
    *(COPY, PUT, DELETE, BEAT, COUNT, ACQUIRE, LIST_MEMBERS, RELEASE),
)
