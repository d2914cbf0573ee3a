package __PACKAGE__;

import android.graphics.Bitmap;

/** Samples of what an app has. */
public final class Samples {
  private Samples() {}

  /** The red, green and blue of a bitmap, uint8. */
  public static Sample of(Bitmap bitmap) {
    int width = bitmap.getWidth();
    int height = bitmap.getHeight();
    int[] pixels = new int[width * height];
    bitmap.getPixels(pixels, 0, width, 0, 0, width, height);
    float[] values = new float[3 * pixels.length];
    for (int i = 0; i < values.length; i++) values[i] = pixels[i / 3] >> (16 - 8 * (i % 3)) & 0xFF;
    return new Sample(values, new int[] {height, width, 3}, "uint8");
  }

  /** Bytes of a camera or a decoder, uint8. */
  public static Sample of(byte[] bytes, int... shape) {
    float[] values = new float[bytes.length];
    for (int i = 0; i < values.length; i++) values[i] = bytes[i] & 0xFF;
    return new Sample(values, shape, "uint8");
  }

  /** One sample of these whole numbers, which float32 holds up to 2^24. */
  static Sample of(Runner runner, int input, int[] values) {
    float[] floats = new float[values.length];
    for (int i = 0; i < floats.length; i++) {
      floats[i] = values[i];
      if (Math.abs(values[i]) > 1 << 24) throw new IllegalArgumentException(values[i] + " is more than 2^24");
    }
    return runner.sample(input, floats);
  }
}
