import io.delta.kernel.Scan;
import io.delta.kernel.Snapshot;
import io.delta.kernel.Table;
import io.delta.kernel.data.FilteredColumnarBatch;
import io.delta.kernel.data.Row;
import io.delta.kernel.defaults.engine.DefaultEngine;
import io.delta.kernel.engine.Engine;
import io.delta.kernel.internal.InternalScanFileUtils;
import io.delta.kernel.internal.SnapshotImpl;
import io.delta.kernel.internal.data.ScanStateRow;
import io.delta.kernel.internal.util.Utils;
import io.delta.kernel.types.StructType;
import io.delta.kernel.utils.CloseableIterator;
import io.delta.kernel.utils.FileStatus;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import org.apache.hadoop.conf.Configuration;

/**
 * Reads a table with Delta Kernel and prints one line of JSON.
 *
 * <p>Usage: {@code KernelReader TABLE rows|files APP_ID...}. With {@code rows} every data file is
 * read, and rows and the sum of the first column, which must be a long, are counted.
 */
public class KernelReader {
  private static final Engine ENGINE = DefaultEngine.create(new Configuration());

  public static void main(String[] arguments) throws Exception {
    Snapshot snapshot = Table.forPath(ENGINE, arguments[0]).getLatestSnapshot(ENGINE);
    boolean reads = arguments[1].equals("rows");
    List<String> txns = new ArrayList<>();
    for (String app : Arrays.asList(arguments).subList(2, arguments.length)) {
      Optional<Long> found = ((SnapshotImpl) snapshot).getLatestTransactionVersion(ENGINE, app);
      txns.add("\"" + app + "\": " + found.map(String::valueOf).orElse("null"));
    }
    Scan scan = snapshot.getScanBuilder().build();
    Row state = scan.getScanState(ENGINE);
    StructType columns = ScanStateRow.getPhysicalDataReadSchema(ENGINE, state);
    List<String> files = new ArrayList<>();
    long[] counts = new long[2];
    try (CloseableIterator<FilteredColumnarBatch> batches = scan.getScanFiles(ENGINE)) {
      while (batches.hasNext()) {
        try (CloseableIterator<Row> rows = batches.next().getRows()) {
          while (rows.hasNext()) {
            Row file = rows.next();
            FileStatus status = InternalScanFileUtils.getAddFileStatus(file);
            String path = status.getPath();
            files.add(path.substring(path.lastIndexOf('/') + 1) + " " + status.getSize());
            if (reads) {
              read(state, file, status, columns, counts);
            }
          }
        }
      }
    }
    System.out.printf(
        "{\"version\": %d, \"txns\": {%s}, \"files\": %d, \"digest\": \"%s\", \"rows\": %d, "
            + "\"sum\": %d}%n",
        snapshot.getVersion(), String.join(", ", txns), files.size(), digest(files), counts[0],
        counts[1]);
  }

  private static void read(
      Row state, Row file, FileStatus status, StructType columns, long[] counts) throws Exception {
    CloseableIterator<FilteredColumnarBatch> batches =
        Scan.transformPhysicalData(
            ENGINE,
            state,
            file,
            ENGINE
                .getParquetHandler()
                .readParquetFiles(
                    Utils.singletonCloseableIterator(status), columns, Optional.empty()));
    try (batches) {
      while (batches.hasNext()) {
        try (CloseableIterator<Row> rows = batches.next().getRows()) {
          while (rows.hasNext()) {
            Row row = rows.next();
            counts[0]++;
            counts[1] += row.getLong(0);
          }
        }
      }
    }
  }

  private static String digest(List<String> files) throws Exception {
    Collections.sort(files);
    byte[] text = String.join("\n", files).getBytes(StandardCharsets.UTF_8);
    return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(text));
  }
}
