// Sends the same body in every way that Apache's clients 4 and 5 know, one line of output for each:
// "PATH STATUS". Run as `java -cp JARS Apache.java URL BODY_FILE`. Client 5 offers TLS over a plain
// connection by itself from 5.4 on; here each client does so, for half of its requests.

import java.io.ByteArrayInputStream;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.hc.client5.http.classic.methods.HttpUriRequestBase;
import org.apache.hc.client5.http.impl.classic.CloseableHttpClient;
import org.apache.hc.client5.http.impl.classic.HttpClients;
import org.apache.hc.core5.http.ContentType;
import org.apache.hc.core5.http.io.entity.EntityUtils;
import org.apache.hc.core5.http.io.entity.InputStreamEntity;
import org.apache.http.client.methods.CloseableHttpResponse;
import org.apache.http.client.methods.RequestBuilder;

class Apache {
    static final String[] METHODS = {"POST", "PUT", "PATCH", "DELETE", "GET"};
    static int number = 0;

    interface Sender {
        int send(String method, URI to, boolean chunked, boolean expects, boolean offers) throws Exception;
    }

    public static void main(String[] args) throws Exception {
        byte[] body = Files.readAllBytes(Path.of(args[1]));
        try (CloseableHttpClient five = HttpClients.createDefault();
            var four = org.apache.http.impl.client.HttpClients.createDefault()) {
            every(args[0], (method, to, chunked, expects, offers) -> {
                var request = new HttpUriRequestBase(method, to);
                var length = chunked ? -1 : body.length;
                var type = ContentType.APPLICATION_FORM_URLENCODED;
                request.setEntity(new InputStreamEntity(new ByteArrayInputStream(body), length, type));
                request.setConfig(org.apache.hc.client5.http.config.RequestConfig.custom()
                    .setExpectContinueEnabled(expects).build());
                if (offers) {
                    request.addHeader("Upgrade", "TLS/1.2");
                    request.addHeader("Connection", "Upgrade");
                }
                return five.execute(request, answer -> {
                    EntityUtils.consume(answer.getEntity());
                    return answer.getCode();
                });
            });
            every(args[0], (method, to, chunked, expects, offers) -> {
                var length = chunked ? -1 : body.length;
                var entity = new org.apache.http.entity.InputStreamEntity(
                    new ByteArrayInputStream(body), length);
                entity.setChunked(chunked);
                var request = RequestBuilder.create(method).setUri(to).setEntity(entity).setConfig(
                    org.apache.http.client.config.RequestConfig.custom()
                        .setExpectContinueEnabled(expects).build());
                if (offers) {
                    request.addHeader("Upgrade", "TLS/1.2").addHeader("Connection", "Upgrade");
                }
                try (CloseableHttpResponse answer = four.execute(request.build())) {
                    org.apache.http.util.EntityUtils.consume(answer.getEntity());
                    return answer.getStatusLine().getStatusCode();
                }
            });
        }
    }

    static void every(String url, Sender sender) throws Exception {
        for (String method : METHODS) {
            for (int ways = 0; ways < 8; ways++) {
                String path = "/v1/apache/" + number++;
                int status = sender.send(
                    method, URI.create(url + path), (ways & 1) > 0, (ways & 2) > 0, (ways & 4) > 0);
                System.out.println(path + " " + status);
            }
        }
    }
}
