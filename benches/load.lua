-- Load for wrk: views by the visitors whose cookies are in the file COOKIES, one in each line. It prepares all requests
-- once. With PIPELINED, a connection sends that many of them in a row, each of the next visitor. At the end it prints a
-- line with the views, the microseconds, the median latency in microseconds, and how many views failed.
local rows, next = {}, 0
function init()
    local requests = {}
    for cookie in io.lines(os.getenv("COOKIES")) do
        wrk.headers["Cookie"] = cookie
        requests[#requests + 1] = wrk.format()
    end
    local pipelined = tonumber(os.getenv("PIPELINED") or 1)
    for first = 0, #requests - 1 do
        local row = {}
        for n = first, first + pipelined - 1 do
            row[#row + 1] = requests[n % #requests + 1]
        end
        rows[#rows + 1] = table.concat(row)
    end
end
function request()
    next = next % #rows + 1
    return rows[next]
end
function done(summary, latency)
    local errors = summary.errors
    local wrong = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("result %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50), wrong))
end
