package __PACKAGE__;

import android.content.res.AssetManager;
import com.google.ai.edge.litert.Accelerator;
import com.google.ai.edge.litert.CompiledModel;
import com.google.ai.edge.litert.TensorBuffer;
import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONObject;

/** A package opened: its manifest, and LiteRT with its model. Not for several threads at once. */
final class Runner {
  static final String MANIFEST = "manifest.json";
  private static final int MOST_BYTES = 500_000_000;
  final Accelerator accelerator;
  final String fallback;
  final String version;
  final List<String> labels = new ArrayList<>();
  private final JSONObject manifest;
  private final AssetManager assets;
  private final String folder; // with a slash at its end
  private final CompiledModel compiled;
  private final Map<String, TensorBuffer> given = new HashMap<>();
  private final Map<String, TensorBuffer> found = new HashMap<>();
  private final Tensor[] inputs;
  private final Tensor[] outputs;
  private final boolean isEmbedded;

  Runner(AssetManager assets, String folder, Accelerator wanted) throws Exception {
    this.assets = assets;
    this.folder = folder;
    manifest = json(read(assets, folder + MANIFEST));
    inputs = tensors("inputs");
    outputs = tensors("outputs");
    version = manifest.getString("version");
    JSONArray names = manifest.getJSONArray("labels");
    for (int i = 0; i < names.length(); i++) labels.add(names.getString(i));
    isEmbedded = manifest.getJSONArray("embedded").length() > 0;
    String name = folder + manifest.getJSONObject("artifact").getString("file");
    CompiledModel model;
    String why = null;
    try {
      model = compiled(name, wanted);
    } catch (RuntimeException e) {
      if (wanted == Accelerator.CPU) throw e;
      why = wanted + ": " + e.getMessage();
      model = compiled(name, Accelerator.CPU);
    }
    compiled = model;
    for (Tensor input : inputs) given.put(input.name, model.createInputBuffer(input.name, null));
    for (Tensor output : outputs) found.put(output.name, model.createOutputBuffer(output.name, null));
    fallback = why;
    accelerator = why == null ? wanted : Accelerator.CPU;
  }

  /** The outputs, in the manifest's order, of one sample an input, after the steps that are left to the app. */
  float[][] predict(Sample... samples) throws Exception {
    Sample[] ready = new Sample[samples.length];
    for (int i = 0; i < ready.length; i++) ready[i] = __PREPROCESS__;
    return infer(ready);
  }

  /** One sample of these values for an input. */
  Sample sample(int input, float[] values) {
    return new Sample(values, inputs[input].shape, isReal(inputs[input]) ? "float32" : inputs[input].type);
  }

  /** The labels of the largest values, the largest first. */
  List<Scored> top(float[] values, int count) {
    boolean isBinary = labels.size() == 2 && values.length == 1;
    float[] scores = isBinary ? new float[] {1 - values[0], values[0]} : values;
    boolean isLabelled = labels.size() == scores.length;
    List<Scored> found = new ArrayList<>();
    for (int i = 0; i < scores.length; i++) {
      int place = found.size();
      while (place > 0 && found.get(place - 1).value < scores[i]) place--;
      found.add(place, new Scored(i, isLabelled ? labels.get(i) : null, scores[i]));
      if (found.size() > count) found.remove(count);
    }
    return found;
  }

  /** The largest differences in steps of an output's scale, or as the share of the largest golden value. */
  SelfTest selfTest() throws Exception {
    JSONObject golden = manifest.getJSONObject("golden");
    float[][][] given = golden("inputs", inputs);
    float[][][] expected = golden("outputs", outputs);
    double[] measured = new double[outputs.length];
    double[] largest = new double[outputs.length];
    double[] limits = new double[outputs.length];
    for (int i = 0; i < given[0].length; i++) {
      Sample[] samples = new Sample[inputs.length];
      for (int k = 0; k < samples.length; k++) samples[k] = sample(k, given[k][i]);
      float[][] found = infer(samples);
      for (int k = 0; k < found.length; k++) {
        for (int j = 0; j < found[k].length; j++) {
          double value = expected[k][i][j];
          measured[k] = Math.max(measured[k], Math.abs(value - found[k][j]));
          largest[k] = Math.max(largest[k], Math.abs(value));
        }
      }
    }
    for (int k = 0; k < limits.length; k++) {
      JSONObject tolerance = golden.getJSONObject("tolerance").getJSONObject(outputs[k].name);
      boolean isLsb = tolerance.getString("unit").equals("lsb");
      measured[k] = isLsb ? Math.rint(measured[k] / outputs[k].scale) : measured[k] / Math.max(largest[k], Float.MIN_NORMAL);
      limits[k] = tolerance.getDouble("value");
    }
    return new SelfTest(measured, limits);
  }

  void close() {
    for (Tensor input : inputs) given.get(input.name).close();
    for (Tensor output : outputs) found.get(output.name).close();
    compiled.close();
  }

  private float[][] infer(Sample[] samples) {
    for (int i = 0; i < inputs.length; i++) inputs[i].write(given.get(inputs[i].name), stored(samples[i], inputs[i]));
    compiled.run(given, found, null);
    float[][] values = new float[outputs.length][];
    for (int i = 0; i < values.length; i++) values[i] = outputs[i].read(found.get(outputs[i].name));
    return values;
  }

  private float[] stored(Sample sample, Tensor tensor) {
    if (!Arrays.equals(sample.shape, tensor.shape)) {
      String shapes = Arrays.toString(tensor.shape) + ", got " + Arrays.toString(sample.shape);
      throw new IllegalArgumentException("input " + tensor.name + " takes samples of shape " + shapes);
    }
    if (isReal(tensor)) return __CODES__;
    if (!tensor.type.equals("float32") && !tensor.type.equals(sample.type)) {
      throw new IllegalArgumentException("input " + tensor.name + " takes " + tensor.type + ", got " + sample.type);
    }
    return sample.values;
  }

  /** Whether an input takes real values, which are quantized here. */
  private boolean isReal(Tensor tensor) {
    return tensor.isQuantized && !isEmbedded;
  }

  private Tensor[] tensors(String side) throws Exception {
    JSONArray specs = manifest.getJSONArray(side);
    Tensor[] found = new Tensor[specs.length()];
    for (int i = 0; i < found.length; i++) found[i] = new Tensor(specs.getJSONObject(i));
    return found;
  }

  private float[][][] golden(String side, Tensor[] tensors) throws Exception {
    JSONObject told = manifest.getJSONObject("golden");
    float[][][] found = new float[tensors.length][][];
    for (int i = 0; i < found.length; i++) {
      byte[] file = read(assets, folder + told.getJSONObject(side).getString(tensors[i].name));
      found[i] = tensors[i].golden(file, told.getInt("samples"), tensors == outputs || isReal(tensors[i]));
    }
    return found;
  }

  /** LiteRT with a model, which it maps where it lies. */
  private CompiledModel compiled(String path, Accelerator accelerator) {
    CompiledModel.Options options = new CompiledModel.Options(accelerator);
    return assets == null ? CompiledModel.create(path, options) : CompiledModel.create(assets, path, options);
  }

  /** A file of the app, or of the device where assets is null. */
  static byte[] read(AssetManager assets, String path) throws Exception {
    return all(assets == null ? new FileInputStream(path) : assets.open(path));
  }

  /** The bytes of a stream, which is closed then. */
  static byte[] all(InputStream in) throws Exception {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    byte[] block = new byte[65536];
    for (int n; (n = in.read(block)) >= 0; ) {
      out.write(block, 0, n);
      if (out.size() > MOST_BYTES) throw new IOException("too large");
    }
    in.close();
    return out.toByteArray();
  }

  static JSONObject json(byte[] text) throws Exception {
    return new JSONObject(text(text));
  }

  static String text(byte[] bytes) {
    return new String(bytes, StandardCharsets.UTF_8);
  }

  static byte[] bytes(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }
}
