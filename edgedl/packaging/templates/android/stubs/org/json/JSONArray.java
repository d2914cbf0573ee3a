package org.json;

public class JSONArray {
  public native int length();
  public native JSONArray put(Object value);
  public native int getInt(int index) throws JSONException;
  public native int optInt(int index);
  public native double getDouble(int index) throws JSONException;
  public native String getString(int index) throws JSONException;
  public native JSONObject getJSONObject(int index) throws JSONException;
}
