import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;

/**
 * A service on the JDK's server and client. It knows nothing of tracing; OpenTelemetry's agent adds
 * that. Arguments and behaviour as ../python/app.py has them.
 */
public final class App {
    private static final Map<String, List<String>> FORWARD = Map.of(
            "none", List.of(),
            "request-id", List.of("x-request-id"),
            "all", List.of("x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled",
                    "x-b3-flags", "x-ot-span-context", "b3", "traceparent", "tracestate"));

    private static String name;
    private static String outbound;
    private static List<String> callees;
    // One client for each service: it keeps connections by address, and here all
    // services have the sidecar's.
    private static final Map<String, HttpClient> clients = new HashMap<>();

    public static void main(String[] arguments) throws IOException {
        name = arguments[0];
        outbound = arguments[2];
        callees = Arrays.asList(arguments).subList(3, arguments.length);
        for (String callee : callees) {
            clients.put(callee, HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build());
        }
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[1])), 1024);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", App::serve);
        server.start();
    }

    private static void serve(HttpExchange exchange) throws IOException {
        try (exchange) {
            int status = 200;
            if (exchange.getRequestURI().getPath().equals("/" + name)) {
                try {
                    for (String callee : callees) {
                        call(callee, exchange);
                    }
                } catch (Exception error) {
                    System.err.println(error);
                    status = 502;
                }
            }
            exchange.sendResponseHeaders(status, 2);
            exchange.getResponseBody().write(new byte[] {'o', 'k'});
        }
    }

    private static void call(String callee, HttpExchange exchange) throws Exception {
        String query = exchange.getRequestURI().getRawQuery();
        var request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + outbound + "/" + callee + "?" + query))
                .header("host", callee);
        String forward = Arrays.stream(query.split("&")).filter(one -> one.startsWith("forward="))
                .findFirst().orElseThrow().substring("forward=".length());
        for (String header : FORWARD.get(forward)) {
            String value = exchange.getRequestHeaders().getFirst(header);
            if (value != null) {
                request.header(header, value);
            }
        }
        var response = clients.get(callee).send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
        if (response.statusCode() != 200) {
            throw new IllegalStateException(callee + ": " + response.statusCode());
        }
    }
}
