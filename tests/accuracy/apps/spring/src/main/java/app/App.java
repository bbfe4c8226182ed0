package app;

import jakarta.servlet.http.HttpServletRequest;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;
import org.apache.hc.client5.http.impl.classic.HttpClients;
import org.apache.hc.client5.http.impl.io.PoolingHttpClientConnectionManagerBuilder;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.http.client.HttpComponentsClientHttpRequestFactory;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;

/**
 * Spring Boot on Tomcat with the threads that it has by default, and RestClient on Apache's client,
 * which calls in the thread of the request. Arguments and behaviour as ../go/main.go has them.
 */
@SpringBootApplication
@RestController
public class App {
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
    private static final Map<String, RestClient> clients = new HashMap<>();
    private static final ExecutorService executor = Executors.newCachedThreadPool();

    public static void main(String[] arguments) {
        outbound = arguments[1];
        boolean parallel = arguments[2].equals("parallel-background");
        steps = parallel ? PARALLEL : SEQUENTIAL;
        forward = arguments[3];
        roundsMs = calibrate();
        for (String host : List.of("h1", "h2", "h3")) {
            clients.put(host, client());
        }
        if (parallel) {
            Thread background = new Thread(App::background);
            background.setDaemon(true);
            background.start();
        }
        SpringApplication.run(App.class, "--server.address=127.0.0.1", "--server.port=" + arguments[0]);
    }

    /** One for each service: it keeps connections by address, and here all have the sidecar's. */
    private static RestClient client() {
        // Of its own accord it would open five connections to a service.
        var connections = PoolingHttpClientConnectionManagerBuilder.create()
                .setMaxConnPerRoute(200).setMaxConnTotal(200).build();
        var http = HttpClients.custom().setConnectionManager(connections).build();
        return RestClient.builder().requestFactory(new HttpComponentsClientHttpRequestFactory(http)).build();
    }

    @PostMapping("/**")
    public String serve(HttpServletRequest request, @RequestBody byte[] truth) {
        String[] parts = request.getRequestURI().split("/");
        String user = parts[1].equals("users") ? parts[2] : "";
        String id = request.getHeader("x-request-id");
        work();
        for (List<String> hosts : steps.get(parts[parts.length - 1])) {
            // The thread makes a call of its own where there is nothing to wait for meanwhile.
            var others = hosts.stream().skip(1)
                    .map(host -> CompletableFuture.runAsync(() -> call(host, user, truth, id, true), executor))
                    .toList();
            call(hosts.get(0), user, truth, id, true);
            others.forEach(CompletableFuture::join);
            work();
        }
        return "ok";
    }

    private static void call(String host, String user, byte[] truth, String id, boolean ours) {
        String path = switch (host) {
            case "h1" -> user.isEmpty() ? "/items" : "/items?user=" + user;
            case "h2" -> user.isEmpty() ? "/profiles" : "/profiles/" + user;
            default -> user.isEmpty() ? "/ratings" : "/ratings/" + user + "/all";
        };
        // A status of 400 and more is an exception.
        clients.get(host).post().uri(URI.create("http://127.0.0.1:" + outbound + path))
                .headers(headers -> {
                    headers.set("Host", host);
                    if (forward.equals("request-id") && id != null) {
                        headers.set("x-request-id", id);
                    } else if (forward.equals("truth") && ours) {
                        headers.set("x-truth", new String(truth, StandardCharsets.US_ASCII).split(" ")[0]);
                    }
                })
                .body(truth).retrieve().toBodilessEntity();
    }

    private static void background() {
        byte[] truth = String.format("%-58s", "background").getBytes(StandardCharsets.US_ASCII);
        while (true) {
            try {
                Thread.sleep(Math.round(-Math.log(1 - ThreadLocalRandom.current().nextDouble()) * BACKGROUND_MS));
                call("h1", "", truth, null, false);
            } catch (InterruptedException stopped) {
                return;
            } catch (RuntimeException error) {
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
