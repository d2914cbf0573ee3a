package __PACKAGE__;

import android.content.Context;
import android.graphics.Bitmap;
import com.google.ai.edge.litert.Accelerator;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Paths;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** Does what the lines of a file ask of a wrapper, `[verb, argument]` each, and prints an answer a line. */
public final class Main {
  private static Context context;
  private static ModelStore store;

  public static void main(String[] given) throws Exception {
    context = new Context(new File(given[0]), new File(given[1]));
    for (String line : Files.readAllLines(Paths.get(given[2]))) {
      JSONArray asked = new JSONArray(line);
      System.out.println(answer(asked.getString(0), asked.opt(1)));
    }
    System.exit(0);
  }

  private static Object answer(String verb, Object argument) {
    try {
      switch (verb) {
        case "steps":
          return steps((JSONObject) argument);
        case "open":
          return opened(new __MODEL__(context, Accelerator.valueOf((String) argument)));
        case "predict":
          return predict((JSONObject) argument);
        case "top":
          return top((JSONObject) argument);
        case "bitmap":
          return json(Samples.of(new Bitmap(new int[] {0xFF0180FF, 0xFF102030}, 1)));
        case "verify":
          return verify((JSONObject) argument);
        case "install":
          return new JSONObject().put("passed", store().install(new File((String) argument), Accelerator.CPU).passed);
        case "stored":
          return opened(store().open(Accelerator.CPU)).put("why", String.valueOf(store().getFallback()));
        default:
          store().clear();
          return "cleared";
      }
    } catch (Exception e) {
      return "refused: " + e.getMessage();
    }
  }

  private static ModelStore store() throws Exception {
    if (store == null) store = new ModelStore(context);
    return store;
  }

  private static JSONObject opened(__MODEL__ model) throws Exception {
    JSONObject found = new JSONObject();
    found.put("accelerator", model.getAccelerator().name()).put("fallback", String.valueOf(model.getFallback()));
    found.put("version", model.getVersion()).put("labels", new JSONArray(model.getLabels()));
    SelfTest test = model.selfTest();
    found.put("passed", test.passed).put("measured", test.measured[0]).put("limit", test.limits[0]);
    model.close();
    return found;
  }

  private static JSONObject predict(JSONObject json) throws Exception {
    __MODEL__ model = new __MODEL__(context, Accelerator.CPU);
    float[] values = model.predict(sample(json));
    Scored best = model.top(values, 2).get(0);
    return new JSONObject().put("values", numbers(values)).put("best", best.label).put("index", best.index);
  }

  /** [label, value] of every value, by the labels given in place of the package's. */
  private static JSONArray top(JSONObject asked) throws Exception {
    Runner runner = new Runner(context.getAssets(), "edgedl/shapes/", Accelerator.CPU);
    runner.labels.clear();
    for (int i = 0; i < asked.getJSONArray("labels").length(); i++) {
      runner.labels.add(asked.getJSONArray("labels").getString(i));
    }
    float[] values = new float[asked.getJSONArray("values").length()];
    for (int i = 0; i < values.length; i++) values[i] = (float) asked.getJSONArray("values").getDouble(i);
    JSONArray found = new JSONArray();
    for (Scored each : runner.top(values, 3)) {
      found.put(new JSONArray().put(String.valueOf(each.label)).put((double) each.value));
    }
    runner.close();
    return found;
  }

  private static JSONObject steps(JSONObject asked) throws JSONException {
    return json(Steps.apply(asked.getJSONArray("steps"), sample(asked.getJSONObject("sample"))));
  }

  private static boolean verify(JSONObject asked) throws Exception {
    return Ed25519.verify(hex(asked.getString("key")), hex(asked.getString("signature")), hex(asked.getString("message")));
  }

  private static byte[] hex(String text) {
    byte[] bytes = new byte[text.length() / 2];
    for (int i = 0; i < bytes.length; i++) bytes[i] = (byte) Integer.parseInt(text.substring(2 * i, 2 * i + 2), 16);
    return bytes;
  }

  private static Sample sample(JSONObject json) throws JSONException {
    JSONArray data = json.getJSONArray("data");
    float[] values = new float[data.length()];
    for (int i = 0; i < values.length; i++) values[i] = (float) data.getDouble(i);
    int[] shape = new int[json.getJSONArray("shape").length()];
    for (int i = 0; i < shape.length; i++) shape[i] = json.getJSONArray("shape").getInt(i);
    return new Sample(values, shape, json.getString("type"));
  }

  private static JSONObject json(Sample sample) throws JSONException {
    JSONArray shape = new JSONArray();
    for (int each : sample.shape) shape.put(each);
    return new JSONObject().put("data", numbers(sample.values)).put("shape", shape).put("type", sample.type);
  }

  private static JSONArray numbers(float[] values) throws JSONException {
    JSONArray found = new JSONArray();
    for (float each : values) found.put((double) each);
    return found;
  }
}
