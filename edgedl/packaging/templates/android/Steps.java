package __PACKAGE__;

import java.util.Arrays;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** The steps that are left to the app, with the arithmetic of edgedl's Python: float32, in the order written. */
final class Steps {
  private Steps() {}

  /** The sample after all steps of a manifest. Throws IllegalArgumentException that names the step. */
  static Sample apply(JSONArray steps, Sample sample) throws JSONException {
    for (int i = 0; i < steps.length(); i++) {
      JSONObject step = steps.getJSONObject(i);
      try {
        sample = apply(step, sample);
      } catch (IllegalArgumentException e) {
        throw new IllegalArgumentException("preprocess step " + (i + 1) + ": " + e.getMessage());
      }
    }
    return sample;
  }

  private static Sample apply(JSONObject step, Sample sample) throws JSONException {
    String op = step.getString("op");
    switch (op) {
      case "cast":
        return as(step.getString("dtype"), sample);
      case "scale":
        return scale(sample, (float) step.getDouble("factor"), (float) step.optDouble("offset", 0));
      case "normalize":
        return normalize(sample, numbers(step.get("mean")), numbers(step.get("std")));
      case "grayscale":
        return grayscale(sample);
      case "crop":
        return crop(sample, step);
      case "resize":
        return resize(sample, step.getInt("height"), step.getInt("width"), step.optString("method"));
      default:
        throw new IllegalArgumentException("no step " + op);
    }
  }

  /** The same numbers in another type; integers are rounded half up and saturate. */
  static Sample as(String type, Sample sample) {
    if (type.equals(sample.type)) return sample;
    float[] values = sample.values.clone();
    if (!type.equals("float32")) {
      boolean isFloat = sample.type.equals("float32");
      for (int i = 0; i < values.length; i++) {
        values[i] = Codes.saturated(isFloat ? (float) Math.floor(values[i] + 0.5f) : values[i], type);
      }
    }
    return new Sample(values, sample.shape, type);
  }

  private static Sample scale(Sample sample, float factor, float offset) {
    float[] values = new float[sample.values.length];
    for (int i = 0; i < values.length; i++) values[i] = sample.values[i] * factor + offset;
    return new Sample(values, sample.shape, "float32");
  }

  private static Sample normalize(Sample sample, float[] mean, float[] std) {
    int channels = Math.max(mean.length, std.length);
    check(channels == 1 || channels == sample.shape[sample.shape.length - 1], channels + " channels", sample);
    float[] values = new float[sample.values.length];
    for (int i = 0; i < values.length; i++) {
      values[i] = (sample.values[i] - mean[i % mean.length]) / std[i % std.length];
    }
    return new Sample(values, sample.shape, "float32");
  }

  private static Sample grayscale(Sample sample) {
    int[] shape = sample.shape;
    check(shape.length == 3 && shape[2] == 3, "an RGB image", sample);
    float[] rgb = sample.values;
    float[] values = new float[rgb.length / 3];
    for (int i = 0; i < values.length; i++) {
      values[i] = 0.299f * rgb[3 * i] + 0.587f * rgb[3 * i + 1] + 0.114f * rgb[3 * i + 2];
    }
    return as(sample.type, new Sample(values, new int[] {shape[0], shape[1], 1}, "float32"));
  }

  private static Sample crop(Sample sample, JSONObject step) throws JSONException {
    int[] shape = resized(sample, step.getInt("height"), step.getInt("width"));
    int columns = sample.shape[1];
    int top = step.optInt("top", Math.floorDiv(sample.shape[0] - shape[0], 2));
    int left = step.optInt("left", Math.floorDiv(columns - shape[1], 2));
    boolean fits = top >= 0 && left >= 0 && top + shape[0] <= sample.shape[0] && left + shape[1] <= columns;
    check(fits, "a larger image than " + Arrays.toString(shape), sample);
    int channels = channels(sample);
    int line = shape[1] * channels;
    float[] values = new float[shape[0] * line];
    for (int y = 0; y < shape[0]; y++) {
      System.arraycopy(sample.values, ((top + y) * columns + left) * channels, values, y * line, line);
    }
    return new Sample(values, shape, sample.type);
  }

  private static Sample resize(Sample sample, int height, int width, String method) {
    int[] shape = resized(sample, height, width);
    if (Arrays.equals(shape, sample.shape)) return sample;
    boolean isNearest = method.equals("nearest");
    float[] values = new float[Sample.size(shape)];
    int channels = channels(sample);
    for (int i = 0; i < values.length; i++) {
      int pixel = i / channels;
      int y = pixel / width;
      int x = pixel % width;
      values[i] = isNearest ? nearest(sample, shape, y, x, i % channels) : bilinear(sample, shape, y, x, i % channels);
    }
    return as(sample.type, new Sample(values, shape, isNearest ? sample.type : "float32"));
  }

  private static float nearest(Sample sample, int[] shape, int y, int x, int channel) {
    int row = (int) Math.min((y + 0.5f) * ratio(sample, shape, 0), sample.shape[0] - 1);
    int column = (int) Math.min((x + 0.5f) * ratio(sample, shape, 1), sample.shape[1] - 1);
    return pixel(sample, row, column, channel);
  }

  private static float bilinear(Sample sample, int[] shape, int y, int x, int channel) {
    float down = (y + 0.5f) * ratio(sample, shape, 0) - 0.5f;
    float top = mix(sample, (int) Math.floor(down), x, shape, channel);
    float bottom = mix(sample, (int) Math.ceil(down), x, shape, channel);
    return top + (bottom - top) * (down - (float) Math.floor(down));
  }

  /** Between two pixels of a row. */
  private static float mix(Sample sample, int row, int x, int[] shape, int channel) {
    float along = (x + 0.5f) * ratio(sample, shape, 1) - 0.5f;
    float left = pixel(sample, row, (int) Math.floor(along), channel);
    float right = pixel(sample, row, (int) Math.ceil(along), channel);
    return left + (right - left) * (along - (float) Math.floor(along));
  }

  private static float ratio(Sample sample, int[] shape, int axis) {
    return (float) sample.shape[axis] / (float) shape[axis];
  }

  /** A pixel; outside of the image the nearest one inside. */
  private static float pixel(Sample sample, int row, int column, int channel) {
    int y = Math.max(0, Math.min(sample.shape[0] - 1, row));
    int x = Math.max(0, Math.min(sample.shape[1] - 1, column));
    return sample.values[(y * sample.shape[1] + x) * channels(sample) + channel];
  }

  private static int channels(Sample sample) {
    return sample.shape.length == 3 ? sample.shape[2] : 1;
  }

  private static int[] resized(Sample sample, int height, int width) {
    check(sample.shape.length == 2 || sample.shape.length == 3, "an image", sample);
    int[] shape = sample.shape.clone();
    shape[0] = height;
    shape[1] = width;
    return shape;
  }

  private static void check(boolean holds, String needed, Sample sample) {
    if (!holds) throw new IllegalArgumentException("needs " + needed + ", got shape " + Arrays.toString(sample.shape));
  }

  private static float[] numbers(Object json) throws JSONException {
    JSONArray array = json instanceof JSONArray ? (JSONArray) json : new JSONArray().put(json);
    float[] found = new float[array.length()];
    for (int i = 0; i < found.length; i++) found[i] = (float) array.getDouble(i);
    return found;
  }
}
