package __PACKAGE__;

import com.google.ai.edge.litert.TensorBuffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** One input or output of the model, as the manifest has it; shape without the batch. */
final class Tensor {
  final String name;
  final String type;
  final int[] shape;
  final boolean isQuantized;
  final float scale;
  private final int zeroPoint;

  Tensor(JSONObject json) throws JSONException {
    name = json.getString("name");
    type = json.getString("dtype");
    JSONArray sizes = json.getJSONArray("shape");
    shape = new int[Math.max(0, sizes.length() - 1)];
    for (int i = 0; i < shape.length; i++) shape[i] = sizes.optInt(i + 1);
    isQuantized = json.getJSONArray("scale").length() > 0;
    scale = isQuantized ? (float) json.getJSONArray("scale").getDouble(0) : 1;
    zeroPoint = isQuantized ? json.getJSONArray("zero_point").getInt(0) : 0;
  }

  /** Real values as what the tensor stores: round(value / scale) + zero point, half to even, saturated. */
  float[] quantized(float[] values) {
    float[] codes = new float[values.length];
    for (int i = 0; i < codes.length; i++) {
      codes[i] = saturated((float) Math.rint(values[i] / scale) + zeroPoint, type);
    }
    return codes;
  }

  /** A number of an integer type, such as uint8. */
  static float saturated(float value, String type) {
    int bits = Integer.parseInt(type.substring(type.indexOf('t') + 1));
    double low = type.charAt(0) == 'u' ? 0 : -Math.pow(2, bits - 1);
    return (float) Math.max(low, Math.min(low + Math.pow(2, bits) - 1, value));
  }

  void write(TensorBuffer buffer, float[] values) {
    if (type.equals("float32")) {
      buffer.writeFloat(values);
    } else if (type.equals("int32")) {
      int[] codes = new int[values.length];
      for (int i = 0; i < codes.length; i++) codes[i] = (int) values[i];
      buffer.writeInt(codes);
    } else {
      byte[] codes = new byte[values.length];
      for (int i = 0; i < codes.length; i++) codes[i] = (byte) values[i];
      buffer.writeInt8(codes);
    }
  }

  /** The real values of what the tensor stores. */
  float[] read(TensorBuffer buffer) {
    if (type.equals("float32")) return buffer.readFloat();
    boolean isInt = type.equals("int32");
    int[] ints = isInt ? buffer.readInt() : null;
    byte[] bytes = isInt ? null : buffer.readInt8();
    float[] values = new float[isInt ? ints.length : bytes.length];
    for (int i = 0; i < values.length; i++) {
      int code = isInt ? ints[i] : type.equals("uint8") ? bytes[i] & 0xFF : bytes[i];
      values[i] = (code - zeroPoint) * scale;
    }
    return values;
  }

  /** The samples of a golden .npy file: of our type, or float32, or whole numbers from 0 to 255 as uint8. */
  float[][] golden(byte[] file, int samples, boolean isReal) {
    ByteBuffer bytes = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN);
    bytes.position(10 + bytes.getShort(8)); // after the header of .npy version 1
    float[][] found = new float[samples][Sample.size(shape)];
    boolean isWide = bytes.remaining() == 4 * samples * found[0].length;
    for (float[] values : found) {
      for (int i = 0; i < values.length; i++) {
        if (isWide) values[i] = isReal || type.equals("float32") ? bytes.getFloat() : bytes.getInt();
        else values[i] = isReal || !type.equals("int8") ? bytes.get() & 0xFF : bytes.get();
      }
    }
    return found;
  }
}
