# frozen_string_literal: true

# A service in Ruby on Puma: 2 processes of 5 threads each, as Rails has them, and Net::HTTP
# with connections of its own in each thread. Arguments and behaviour as ../go/main.go has them.

require "net/http"
require "puma"
require "puma/configuration"
require "puma/launcher"

ROUTES = {
  "sequential" => { "a" => [["h1"], ["h2"]], "b" => [["h2"], ["h3"]], "c" => [], "d" => [["h1"]] },
  "parallel-background" => { "a" => [["h1"], ["h2"]], "b" => [["h2", "h3"], ["h1"]], "c" => [], "d" => [["h1"]] },
}.freeze
# What a call asks for, without and with the user that the request named.
PATHS = {
  "h1" => ["/items", "/items?user=%s"],
  "h2" => ["/profiles", "/profiles/%s"],
  "h3" => ["/ratings", "/ratings/%s/all"],
}.freeze
WORK_MS = Float(ENV.fetch("WORK_MS", "0.3"))
BACKGROUND_MS = 200
PROCESSES = 2
THREADS = 5

PORT, OUTBOUND, VARIANT, FORWARD = ARGV
STEPS = ROUTES.fetch(VARIANT)

# CPU time of this thread, as much as is asked for.
def work
  ms = WORK_MS * Math.exp(0.5 * Math.sqrt(-2 * Math.log(1 - rand)) * Math.cos(2 * Math::PI * rand))
  till = Process.clock_gettime(Process::CLOCK_THREAD_CPUTIME_ID) + ms / 1000
  nil while Process.clock_gettime(Process::CLOCK_THREAD_CPUTIME_ID) < till
end

def call(host, user, truth, request_id, ours)
  clients = Thread.current.thread_variable_get(:clients) || {}
  Thread.current.thread_variable_set(:clients, clients)
  # It opens the connection anew if it was idle for longer than that.
  clients[host] ||= Net::HTTP.new("127.0.0.1", Integer(OUTBOUND)).tap { |made| made.keep_alive_timeout = 60 }.start
  headers = { "Host" => host, "Content-Type" => "text/plain" }
  if FORWARD == "request-id" && request_id
    headers["X-Request-Id"] = request_id
  elsif FORWARD == "truth" && ours
    headers["X-Truth"] = truth.split.first
  end
  plain, of_user = PATHS.fetch(host)
  response = clients[host].post(user.empty? ? plain : format(of_user, user), truth, headers)
  raise "#{host}: status #{response.code}" unless response.code == "200"
end

def serve(env)
  truth = env["rack.input"].read
  parts = env["PATH_INFO"].split("/")
  user = parts[1] == "users" ? parts[2] : ""
  work
  STEPS.fetch(parts.last).each do |hosts|
    # The thread makes a call of its own where there is nothing to wait for meanwhile.
    others = hosts.drop(1).map { |host| Thread.new { call(host, user, truth, env["HTTP_X_REQUEST_ID"], true) } }
    call(hosts.first, user, truth, env["HTTP_X_REQUEST_ID"], true)
    others.each(&:join)
    work
  end
  [200, { "Content-Type" => "text/plain" }, ["ok"]]
end

def background
  Thread.new do
    loop do
      sleep(-Math.log(1 - rand) * BACKGROUND_MS * PROCESSES / 1000)
      call("h1", "", "background".ljust(58), nil, false)
    rescue StandardError => e
      Thread.current.thread_variable_set(:clients, nil)
      warn e.message
    end
  end
end

configuration = Puma::Configuration.new do |config|
  config.bind "tcp://127.0.0.1:#{PORT}"
  config.workers PROCESSES
  config.threads THREADS, THREADS
  config.preload_app!
  config.persistent_timeout 75
  config.app { |env| serve(env) }
  config.on_worker_boot { background if VARIANT == "parallel-background" }
end
Puma::Launcher.new(configuration).run
