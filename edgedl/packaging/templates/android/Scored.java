package __PACKAGE__;

/** One of the labels with the model's value for it. */
public final class Scored {
  public final int index;
  /** null where there is not one label a value. */
  public final String label;
  public final float value;

  Scored(int index, String label, float value) {
    this.index = index;
    this.label = label;
    this.value = value;
  }
}
