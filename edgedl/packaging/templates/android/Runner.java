package __PACKAGE__;

import com.google.ai.edge.litert.Accelerator;
import com.google.ai.edge.litert.CompiledModel;
import com.google.ai.edge.litert.TensorBuffer;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** A package opened: its manifest, and LiteRT with its model. Not for several threads at once. */
final class Runner {
  final Accelerator accelerator;
  final String fallback;
  final String version;
  final List<String> labels = new ArrayList<>();
  private final JSONObject manifest;
  private final Files files;
  private final CompiledModel compiled;
  private final Map<String, TensorBuffer> given = new HashMap<>();
  private final Map<String, TensorBuffer> found = new HashMap<>();
  private final Tensor[] inputs;
  private final Tensor[] outputs;
  private final boolean isEmbedded;

  Runner(Files files, Accelerator wanted) throws IOException, JSONException {
    this.files = files;
    manifest = files.json(Files.MANIFEST);
    inputs = tensors("inputs");
    outputs = tensors("outputs");
    version = manifest.getString("version");
    JSONArray names = manifest.getJSONArray("labels");
    for (int i = 0; i < names.length(); i++) labels.add(names.getString(i));
    isEmbedded = manifest.getJSONArray("embedded").length() > 0;
    String name = manifest.getJSONObject("artifact").getString("file");
    CompiledModel model;
    String why = null;
    try {
      model = files.compile(name, wanted);
    } catch (RuntimeException e) {
      if (wanted == Accelerator.CPU) throw e;
      why = wanted + ": " + e.getMessage();
      model = files.compile(name, Accelerator.CPU);
    }
    compiled = model;
    for (Tensor input : inputs) given.put(input.name, model.createInputBuffer(input.name, null));
    for (Tensor output : outputs) found.put(output.name, model.createOutputBuffer(output.name, null));
    fallback = why;
    accelerator = why == null ? wanted : Accelerator.CPU;
  }

  /** The outputs, in the manifest's order, of one sample an input, after the steps that are left to the app. */
  float[][] predict(Sample... samples) throws JSONException {
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
    List<Scored> found = new ArrayList<>();
    for (int i = 0; i < values.length; i++) {
      int place = found.size();
      while (place > 0 && found.get(place - 1).value < values[i]) place--;
      found.add(place, new Scored(i, i < labels.size() ? labels.get(i) : null, values[i]));
      if (found.size() > count) found.remove(count);
    }
    return found;
  }

  SelfTest selfTest() throws IOException, JSONException {
    JSONObject golden = manifest.getJSONObject("golden");
    float[][][] given = golden("inputs", inputs);
    float[][][] expected = golden("outputs", outputs);
    float[][][] found = new float[outputs.length][given[0].length][];
    for (int i = 0; i < given[0].length; i++) {
      Sample[] samples = new Sample[inputs.length];
      for (int k = 0; k < samples.length; k++) samples[k] = sample(k, given[k][i]);
      float[][] values = infer(samples);
      for (int k = 0; k < values.length; k++) found[k][i] = values[k];
    }
    double[] measured = new double[outputs.length];
    double[] limits = new double[outputs.length];
    for (int k = 0; k < limits.length; k++) {
      JSONObject tolerance = golden.getJSONObject("tolerance").getJSONObject(outputs[k].name);
      boolean isLsb = tolerance.getString("unit").equals("lsb");
      measured[k] = difference(expected[k], found[k], isLsb ? outputs[k].scale : 0);
      limits[k] = tolerance.getDouble("value");
    }
    return new SelfTest(measured, limits);
  }

  /** The largest difference in steps of a scale, or where that is 0 as the share of the largest expected value. */
  private static double difference(float[][] expected, float[][] found, float scale) {
    double most = 0;
    double largest = Float.MIN_NORMAL;
    for (int i = 0; i < expected.length; i++) {
      for (int k = 0; k < expected[i].length; k++) {
        double off = Math.abs(expected[i][k] - (double) found[i][k]);
        most = Math.max(most, Double.isNaN(off) ? Double.POSITIVE_INFINITY : off);
        largest = Math.max(largest, Math.abs(expected[i][k]));
      }
    }
    return scale == 0 ? most / largest : Math.rint(most / scale);
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

  private Tensor[] tensors(String side) throws JSONException {
    JSONArray specs = manifest.getJSONArray(side);
    Tensor[] found = new Tensor[specs.length()];
    for (int i = 0; i < found.length; i++) found[i] = new Tensor(specs.getJSONObject(i));
    return found;
  }

  private float[][][] golden(String side, Tensor[] tensors) throws IOException, JSONException {
    JSONObject told = manifest.getJSONObject("golden");
    float[][][] found = new float[tensors.length][][];
    for (int i = 0; i < found.length; i++) {
      byte[] file = files.read(told.getJSONObject(side).getString(tensors[i].name));
      found[i] = tensors[i].golden(file, told.getInt("samples"), tensors == outputs || isReal(tensors[i]));
    }
    return found;
  }
}
