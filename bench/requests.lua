-- Sends the requests of a file, one a line: method, path, token, body (may be empty), separated by tabs.
-- wrk … -s requests.lua URL -- FILE [MILLISECONDS]
-- Each thread takes its own part of the file, in order, and starts again at its beginning when it is through.
-- Each connection waits MILLISECONDS, on average, before each request; without them it does not wait.
-- A request is put together when it is sent for the first time: all of them at the start kept both cores from the
-- service for 150 ms, which a short run then saw as its p99.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  lines, requests, at = {}, {}, 0
  local line_number = 0
  for line in io.lines(arguments[1]) do
    if line_number % 2 == number % 2 then -- wrk is started with two threads
      lines[#lines + 1] = line
    end
    line_number = line_number + 1
  end
  if arguments[2] then
    math.randomseed(number) -- or else both threads wait in step
    function delay() return math.random(2 * arguments[2]) end
  end
end

function request()
  at = at % #lines + 1
  if not requests[at] then
    local method, path, token, body = lines[at]:match("([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)")
    requests[at] = wrk.format(method, path, { ["Client-Token"] = token }, body ~= "" and body or nil)
  end
  return requests[at]
end

function done(summary, latency)
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "not_2xx": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
