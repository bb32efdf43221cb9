// Sends the same body in every way that the JDK's own client knows, one line of output for each:
// "PATH STATUS". Run as `java Sending.java URL BODY_FILE`.

import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

class Sending {
    public static void main(String[] args) throws Exception {
        byte[] body = Files.readAllBytes(Path.of(args[1]));
        int number = 0;
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(version).build();
            for (String method : new String[] {"POST", "PUT", "PATCH", "DELETE", "GET"}) {
                for (boolean chunked : new boolean[] {false, true}) {
                    for (boolean expects : new boolean[] {false, true}) {
                        BodyPublisher sent = chunked
                            ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
                            : BodyPublishers.ofByteArray(body);
                        String path = "/v1/jdk/" + number++;
                        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + path))
                            .timeout(Duration.ofSeconds(20))
                            .expectContinue(expects)
                            .method(method, sent)
                            .build();
                        int status = client.send(request, BodyHandlers.ofByteArray()).statusCode();
                        System.out.println(path + " " + status);
                    }
                }
            }
        }
    }
}
