-- Sends the requests of a file, one a line: method, path, token, body (may be empty), separated by tabs.
-- wrk … -s requests.lua URL -- FILE [MILLISECONDS]
-- Each thread takes its own part of the file, in order, and starts again at its beginning when it is through.
-- Each connection waits MILLISECONDS, on average, before each request; without them it does not wait.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  requests, at = {}, 0
  local line_number = 0
  for line in io.lines(arguments[1]) do
    if line_number % 2 == number % 2 then -- wrk is started with two threads
      local method, path, token, body = line:match("([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)")
      requests[#requests + 1] = wrk.format(method, path, { ["Client-Token"] = token }, body ~= "" and body or nil)
    end
    line_number = line_number + 1
  end
  if arguments[2] then
    function delay() return math.random(2 * arguments[2]) end
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "not_2xx": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
