import brave.propagation.B3Propagation;
import brave.propagation.Propagation;
import brave.propagation.TraceContext;
import brave.propagation.TraceContextOrSamplingFlags;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.propagation.TextMapGetter;
import io.opentelemetry.context.propagation.TextMapPropagator;
import io.opentelemetry.extension.trace.propagation.B3Propagator;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.AbstractMap.SimpleEntry;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

/**
 * The readings of brave (`brave`), and of OpenTelemetry for Java: of B3 (`b3`), set up for the
 * single header (`single`), and of W3C Trace Context (`w3c`). Lines: see lines.py.
 */
public final class Reader {
  /** The first value, as the servlet API's getHeader gives it. */
  static String first(List<Map.Entry<String, String>> headers, String name) {
    for (Map.Entry<String, String> header : headers) {
      if (header.getKey().equalsIgnoreCase(name)) return header.getValue();
    }
    return null;
  }

  static final TraceContext.Extractor<List<Map.Entry<String, String>>> BRAVE =
      B3Propagation.get().extractor(Reader::first);

  static String brave(List<Map.Entry<String, String>> headers) {
    TraceContextOrSamplingFlags read = BRAVE.extract(headers);
    String sampled = read.sampled() == null ? "?" : read.sampled() ? "1" : "0";
    TraceContext context = read.context();
    if (context == null) return "- - - " + sampled;
    String trace = "0".repeat(32 - context.traceIdString().length()) + context.traceIdString();
    String parent = context.parentIdString() == null ? "-" : context.parentIdString();
    return trace + " " + context.spanIdString() + " " + parent + " " + sampled;
  }

  static String otel(TextMapPropagator propagator, List<Map.Entry<String, String>> headers) {
    TextMapGetter<List<Map.Entry<String, String>>> getter = new TextMapGetter<>() {
      @Override public Iterable<String> keys(List<Map.Entry<String, String>> carrier) {
        return carrier.stream().map(Map.Entry::getKey).toList();
      }

      @Override public String get(List<Map.Entry<String, String>> carrier, String key) {
        return first(carrier, key);
      }
    };
    Context context = propagator.extract(Context.root(), headers, getter);
    SpanContext span = Span.fromContext(context).getSpanContext();
    if (!span.isValid()) return "- - ~ ~";
    return span.getTraceId() + " " + span.getSpanId() + " ~ " + (span.isSampled() ? "1" : "0");
  }

  public static void main(String[] args) throws Exception {
    TextMapPropagator otel = switch (args[0]) {
      case "b3" -> B3Propagator.injectingMultiHeaders();
      case "single" -> B3Propagator.injectingSingleHeader();
      case "w3c" -> W3CTraceContextPropagator.getInstance();
      default -> null;
    };
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.US_ASCII);
    for (String line; (line = in.readLine()) != null; ) {
      List<Map.Entry<String, String>> headers = new ArrayList<>();
      for (String word : line.isBlank() ? new String[0] : line.split(" ")) {
        int at = word.indexOf('=');
        byte[] value = HexFormat.of().parseHex(word.substring(at + 1));
        headers.add(new SimpleEntry<>(word.substring(0, at), new String(value, StandardCharsets.ISO_8859_1)));
      }
      out.println(otel == null ? brave(headers) : otel(otel, headers));
    }
    out.flush();
  }
}
