-- Requests for wrk, described by key=value arguments:
--   method, path, type (content type), body (a file), query, authorization
--   count=N   appends a number from 1 to N to the path: pick=random (default) or pick=each (1, 2, 3 ...)
--   limit=N   stops after N answers
-- Ends with one line of JSON.

local head, tail, count, each, limit
local issued, answered = 0, 0

function init(args)
  local given = { method = "POST", path = "/", query = "", pick = "random" }
  for _, arg in ipairs(args) do
    local key, value = arg:match("^([%w-]+)=(.*)$")
    given[key] = value
  end
  local body = ""
  if given.body then
    local file = assert(io.open(given.body, "rb"))
    body = file:read("*a")
    file:close()
  end
  count = tonumber(given.count)
  each = given.pick == "each"
  limit = tonumber(given.limit)
  head = given.method .. " " .. given.path
  tail = given.query .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n"
  if given.type then
    tail = tail .. "Content-Type: " .. given.type .. "\r\n"
  end
  if given.authorization then
    tail = tail .. "Authorization: " .. given.authorization .. "\r\n"
  end
  if given.method ~= "GET" then
    tail = tail .. "Content-Length: " .. #body .. "\r\n"
  end
  tail = tail .. "\r\n" .. body
  if not count then
    head = head .. tail
  end
  if not limit then
    response = nil
  end
  math.randomseed(20011)
end

function request()
  if not count then
    return head
  end
  if each then
    issued = issued % count + 1
    return head .. issued .. tail
  end
  return head .. math.random(count) .. tail
end

function response()
  answered = answered + 1
  if answered == limit then
    wrk.thread:stop()
    io.stderr:write("limit reached\n") -- wrk itself sleeps on; who started it ends it
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "p999_us": %d, "bad_status": %d, "bad_socket": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
