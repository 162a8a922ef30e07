-- Load for wrk: views by the visitors whose cookies are in the file COOKIES, one in each line. It prepares all requests
-- once, and at the end prints a line with the views, the microseconds, the median latency in microseconds, and how many
-- views failed.
local requests, next = {}, 0
function init()
    for cookie in io.lines(os.getenv("COOKIES")) do
        wrk.headers["Cookie"] = cookie
        requests[#requests + 1] = wrk.format()
    end
end
function request()
    next = next % #requests + 1
    return requests[next]
end
function done(summary, latency)
    local errors = summary.errors
    local wrong = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("result %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50), wrong))
end
