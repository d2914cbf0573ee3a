package __PACKAGE__;

import com.google.ai.edge.litert.TensorBuffer;

/** Tensors of integers: codes that stand for real values, or the integers themselves. */
final class Codes {
  private Codes() {}

  /** Real values as what a tensor stores: round(value / scale) + zero point, half to even, saturated. */
  static float[] of(float[] values, Tensor tensor) {
    float[] codes = new float[values.length];
    for (int i = 0; i < codes.length; i++) {
      codes[i] = saturated((float) Math.rint(values[i] / tensor.scale) + tensor.zeroPoint, tensor.type);
    }
    return codes;
  }

  /** A number of an integer type, such as uint8. */
  static float saturated(float value, String type) {
    int bits = Integer.parseInt(type.substring(type.indexOf('t') + 1));
    double low = type.charAt(0) == 'u' ? 0 : -Math.pow(2, bits - 1);
    return (float) Math.max(low, Math.min(low + Math.pow(2, bits) - 1, value));
  }

  static void write(Tensor tensor, TensorBuffer buffer, float[] values) {
    if (tensor.type.equals("float32")) {
      buffer.writeFloat(values);
    } else if (tensor.type.equals("int32")) {
      int[] codes = new int[values.length];
      for (int i = 0; i < codes.length; i++) codes[i] = (int) values[i];
      buffer.writeInt(codes);
    } else {
      byte[] codes = new byte[values.length];
      for (int i = 0; i < codes.length; i++) codes[i] = (byte) values[i];
      buffer.writeInt8(codes);
    }
  }

  /** The real values of what a tensor stores. */
  static float[] read(Tensor tensor, TensorBuffer buffer) {
    if (tensor.type.equals("float32")) return buffer.readFloat();
    boolean isInt = tensor.type.equals("int32");
    int[] ints = isInt ? buffer.readInt() : null;
    byte[] bytes = isInt ? null : buffer.readInt8();
    float[] values = new float[isInt ? ints.length : bytes.length];
    for (int i = 0; i < values.length; i++) {
      int code = isInt ? ints[i] : tensor.type.equals("uint8") ? bytes[i] & 0xFF : bytes[i];
      values[i] = (code - tensor.zeroPoint) * tensor.scale;
    }
    return values;
  }
}
