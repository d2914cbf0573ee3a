package __PACKAGE__;

import com.google.ai.edge.litert.TensorBuffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.json.JSONArray;
import org.json.JSONObject;

/** One input or output of the model, as the manifest has it; shape without the batch. */
final class Tensor {
  final String name;
  final String type;
  final int[] shape;
  final boolean isQuantized;
  final float scale;
  final int zeroPoint;

  Tensor(JSONObject json) throws Exception {
    name = json.getString("name");
    type = json.getString("dtype");
    JSONArray sizes = json.getJSONArray("shape");
    shape = new int[Math.max(0, sizes.length() - 1)];
    for (int i = 0; i < shape.length; i++) shape[i] = sizes.optInt(i + 1);
    isQuantized = json.getJSONArray("scale").length() > 0;
    scale = isQuantized ? (float) json.getJSONArray("scale").getDouble(0) : 1;
    zeroPoint = isQuantized ? json.getJSONArray("zero_point").getInt(0) : 0;
  }

  void write(TensorBuffer buffer, float[] values) {
    __WRITE__;
  }

  /** The real values of what the tensor stores. */
  float[] read(TensorBuffer buffer) {
    return __READ__;
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
