import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;

/**
 * A service on the JDK with a pool of 16 threads: more requests than that wait. Arguments and
 * behaviour as ../go/main.go has them.
 */
public final class App {
    private static final int THREADS = 16;
    private static final double WORK_MS = Double.parseDouble(System.getenv().getOrDefault("WORK_MS", "0.3"));
    private static final double BACKGROUND_MS = 200;

    private static final Map<String, List<List<String>>> SEQUENTIAL = Map.of(
            "a", List.of(List.of("h1"), List.of("h2")),
            "b", List.of(List.of("h2"), List.of("h3")),
            "c", List.of(),
            "d", List.of(List.of("h1")));
    private static final Map<String, List<List<String>>> PARALLEL = Map.of(
            "a", List.of(List.of("h1"), List.of("h2")),
            "b", List.of(List.of("h2", "h3"), List.of("h1")),
            "c", List.of(),
            "d", List.of(List.of("h1")));

    private static Map<String, List<List<String>>> steps;
    private static String outbound;
    private static String forward;
    private static double roundsMs;
    // One client for each service: it keeps connections by address, and here all
    // services have the sidecar's.
    private static final Map<String, HttpClient> clients = new HashMap<>();

    public static void main(String[] arguments) throws IOException {
        outbound = arguments[1];
        boolean parallel = arguments[2].equals("parallel-background");
        steps = parallel ? PARALLEL : SEQUENTIAL;
        forward = arguments[3];
        roundsMs = calibrate();
        for (String host : List.of("h1", "h2", "h3")) {
            clients.put(host, HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build());
        }
        if (parallel) {
            Thread background = new Thread(App::background);
            background.setDaemon(true);
            background.start();
        }
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 1024);
        server.setExecutor(Executors.newFixedThreadPool(THREADS));
        server.createContext("/", App::serve);
        server.start();
    }

    private static void serve(HttpExchange exchange) throws IOException {
        try (exchange) {
            byte[] truth = exchange.getRequestBody().readAllBytes();
            String[] parts = exchange.getRequestURI().getPath().split("/");
            String user = parts[1].equals("users") ? parts[2] : "";
            String id = exchange.getRequestHeaders().getFirst("x-request-id");
            int status = 200;
            try {
                work();
                for (List<String> hosts : steps.get(parts[parts.length - 1])) {
                    callAll(hosts, user, truth, id);
                    work();
                }
            } catch (Exception error) {
                System.err.println(error);
                status = 502;
            }
            byte[] answer = "ok".getBytes(StandardCharsets.US_ASCII);
            exchange.sendResponseHeaders(status, answer.length);
            exchange.getResponseBody().write(answer);
        }
    }

    private static void callAll(List<String> hosts, String user, byte[] truth, String id) throws Exception {
        if (hosts.size() == 1) {
            check(clients.get(hosts.get(0)).send(request(hosts.get(0), user, truth, id, true),
                    HttpResponse.BodyHandlers.ofByteArray()));
            return;
        }
        var calls = new ArrayList<CompletableFuture<HttpResponse<byte[]>>>();
        for (String host : hosts) {
            calls.add(clients.get(host).sendAsync(request(host, user, truth, id, true),
                    HttpResponse.BodyHandlers.ofByteArray()));
        }
        for (var call : calls) {
            check(call.get());
        }
    }

    private static HttpRequest request(String host, String user, byte[] truth, String id, boolean ours) {
        String path = switch (host) {
            case "h1" -> user.isEmpty() ? "/items" : "/items?user=" + user;
            case "h2" -> user.isEmpty() ? "/profiles" : "/profiles/" + user;
            default -> user.isEmpty() ? "/ratings" : "/ratings/" + user + "/all";
        };
        var request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + outbound + path))
                .POST(HttpRequest.BodyPublishers.ofByteArray(truth))
                .header("host", host);
        if (forward.equals("request-id") && id != null) {
            request.header("x-request-id", id);
        } else if (forward.equals("truth") && ours) {
            request.header("x-truth", new String(truth, StandardCharsets.US_ASCII).split(" ")[0]);
        }
        return request.build();
    }

    private static void check(HttpResponse<byte[]> response) {
        if (response.statusCode() != 200) {
            throw new IllegalStateException("status " + response.statusCode());
        }
    }

    private static void background() {
        byte[] truth = String.format("%-58s", "background").getBytes(StandardCharsets.US_ASCII);
        while (true) {
            try {
                Thread.sleep(Math.round(-Math.log(1 - ThreadLocalRandom.current().nextDouble()) * BACKGROUND_MS));
                check(clients.get("h1").send(request("h1", "", truth, null, false),
                        HttpResponse.BodyHandlers.ofByteArray()));
            } catch (InterruptedException stopped) {
                return;
            } catch (IOException | IllegalStateException error) {
                System.err.println(error);
            }
        }
    }

    private static void work() {
        spin(Math.round(roundsMs * WORK_MS * Math.exp(0.5 * ThreadLocalRandom.current().nextGaussian())));
    }

    private static void spin(long rounds) {
        long x = 88172645463325252L;
        for (long n = 0; n < rounds; n++) {
            x ^= x << 13;
            x ^= x >>> 7;
            x ^= x << 17;
        }
        if (x == 0) {
            throw new AssertionError("xorshift never gives 0");
        }
    }

    /** How many rounds take a millisecond, once they are compiled. */
    private static double calibrate() {
        long rounds = 1_000_000;
        double best = Double.POSITIVE_INFINITY;
        for (int n = 0; n < 50; n++) {
            long began = System.nanoTime();
            spin(rounds);
            best = Math.min(best, (System.nanoTime() - began) / 1e6);
        }
        return rounds / best;
    }
}
