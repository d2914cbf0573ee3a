package com.google.ai.edge.litert;

import org.json.JSONArray;
import org.json.JSONException;

/** What a tensor stores, as the numbers of its type. */
public final class TensorBuffer implements AutoCloseable {
  JSONArray codes;

  public void writeFloat(float[] data) throws JSONException {
    codes = new JSONArray();
    for (float each : data) codes.put((double) each);
  }

  public void writeInt(int[] data) {
    codes = new JSONArray();
    for (int each : data) codes.put(each);
  }

  public void writeInt8(byte[] data) {
    codes = new JSONArray();
    for (byte each : data) codes.put((int) each);
  }

  public float[] readFloat() throws JSONException {
    float[] found = new float[codes.length()];
    for (int i = 0; i < found.length; i++) found[i] = (float) codes.getDouble(i);
    return found;
  }

  public int[] readInt() throws JSONException {
    int[] found = new int[codes.length()];
    for (int i = 0; i < found.length; i++) found[i] = codes.getInt(i);
    return found;
  }

  public byte[] readInt8() throws JSONException {
    byte[] found = new byte[codes.length()];
    for (int i = 0; i < found.length; i++) found[i] = (byte) codes.getInt(i);
    return found;
  }

  public void close() {}
}
