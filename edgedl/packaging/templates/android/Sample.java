package __PACKAGE__;

import java.util.Arrays;

/**
 * Values before preprocessing. An image is (height, width, channels), values from row to row; type is what the values
 * were in the app ("uint8" for pixels, "float32"), since steps on integers round.
 */
public final class Sample {
  final float[] values;
  final int[] shape;
  final String type;

  public Sample(float[] values, int[] shape, String type) {
    this.values = values;
    this.shape = shape;
    this.type = type;
    if (values.length != size(shape)) {
      throw new IllegalArgumentException(values.length + " values are not of shape " + Arrays.toString(shape));
    }
  }

  static int size(int[] shape) {
    int product = 1;
    for (int length : shape) product *= length;
    return product;
  }
}
