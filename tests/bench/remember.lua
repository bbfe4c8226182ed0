-- Inbound, as a user would write it: remember the context of a request under its
-- request ID. Bounded by a ring, in which the oldest is forgotten: to remove the
-- entry with the response takes a second callback, and metadata to carry the ID.
local CAPACITY = 4096
local remembered, ring, slot = {}, {}, 0

function envoy_on_request(handle)
  local headers = handle:headers()
  local id = headers:get("x-request-id")
  local trace = headers:get("x-b3-traceid")
  if id == nil or trace == nil then
    return
  end
  if remembered[id] == nil then
    slot = slot % CAPACITY + 1
    if ring[slot] ~= nil then
      remembered[ring[slot]] = nil
    end
    ring[slot] = id
  end
  remembered[id] = {
    ["x-b3-traceid"] = trace,
    ["x-b3-spanid"] = headers:get("x-b3-spanid"),
    ["x-b3-parentspanid"] = headers:get("x-b3-parentspanid"),
    ["x-b3-sampled"] = headers:get("x-b3-sampled"),
    ["x-b3-flags"] = headers:get("x-b3-flags"),
  }
end
