package android.graphics;

/** Opaque pixels, 0xAARRGGBB. */
public final class Bitmap {
  private final int[] pixels;
  private final int width;

  public Bitmap(int[] pixels, int width) {
    this.pixels = pixels;
    this.width = width;
  }

  public int getWidth() {
    return width;
  }

  public int getHeight() {
    return pixels.length / width;
  }

  public void getPixels(int[] into, int offset, int stride, int x, int y, int width, int height) {
    System.arraycopy(pixels, 0, into, offset, pixels.length);
  }
}
