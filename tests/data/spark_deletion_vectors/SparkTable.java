import org.apache.spark.sql.*;
public class SparkTable {
  public static void main(String[] a) {
    SparkSession s = SparkSession.builder().master("local[1]").appName("gen")
      .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
      .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
      .config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", "1")
      .config("spark.sql.session.timeZone", "UTC")
      .getOrCreate();
    String p = "delta.`" + a[0] + "`";
    s.sql("CREATE TABLE " + p + " (id BIGINT, name STRING, day DATE) USING delta PARTITIONED BY (day) "
      + "TBLPROPERTIES ('delta.enableDeletionVectors'='true','delta.checkpointInterval'='1000')");
    s.conf().set("spark.databricks.delta.write.txnAppId", "spark-load");
    for (int d = 1; d <= 3; d++) {
      s.conf().set("spark.databricks.delta.write.txnVersion", String.valueOf(d));
      s.sql("INSERT INTO " + p + " SELECT /*+ COALESCE(1) */ id, concat('name ', id), DATE'2026-11-0" + d + "' FROM range(" + (d * 1000) + "," + (d * 1000 + 200) + ",1,1)");
    }
    s.conf().unset("spark.databricks.delta.write.txnAppId");
    s.conf().unset("spark.databricks.delta.write.txnVersion");
    s.sql("DELETE FROM " + p + " WHERE day = DATE'2026-11-01' AND id % 7 = 0");
    s.sql("DELETE FROM " + p + " WHERE day = DATE'2026-11-02' AND id BETWEEN 2010 AND 2090");
    s.sql("DELETE FROM " + p + " WHERE day = DATE'2026-11-01' AND id % 5 = 0");
    s.sql("SELECT day, count(*), sum(id) FROM " + p + " GROUP BY day ORDER BY day").show();
    s.stop();
  }
}
